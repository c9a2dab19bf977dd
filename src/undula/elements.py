"""Chemical elements: the few numbers about them that undula needs."""

from __future__ import annotations

from typing import NamedTuple


class Element(NamedTuple):
    """One chemical element.

    Attributes:
        number: Atomic number.
        vdw_radius: Van der Waals radius in Å: Bondi (1964) and, for the metals he leaves out,
            Alvarez (2013) capped at 2.4; hydrogen 1.10 after Rowland and Taylor (1996).
        covalent_radius: Single-bond radius in Å (Cordero et al., 2008).
        mass: Standard atomic weight in u.
    """

    number: int
    vdw_radius: float
    covalent_radius: float
    mass: float


ELEMENTS: dict[str, Element] = {
    "H": Element(1, 1.10, 0.31, 1.008),
    "D": Element(1, 1.10, 0.31, 2.014),
    "HE": Element(2, 1.40, 0.28, 4.0026),
    "LI": Element(3, 1.82, 1.28, 6.94),
    "BE": Element(4, 1.53, 0.96, 9.0122),
    "B": Element(5, 1.92, 0.84, 10.81),
    "C": Element(6, 1.70, 0.76, 12.011),
    "N": Element(7, 1.55, 0.71, 14.007),
    "O": Element(8, 1.52, 0.66, 15.999),
    "F": Element(9, 1.47, 0.57, 18.998),
    "NE": Element(10, 1.54, 0.58, 20.180),
    "NA": Element(11, 2.27, 1.66, 22.990),
    "MG": Element(12, 1.73, 1.41, 24.305),
    "AL": Element(13, 1.84, 1.21, 26.982),
    "SI": Element(14, 2.10, 1.11, 28.085),
    "P": Element(15, 1.80, 1.07, 30.974),
    "S": Element(16, 1.80, 1.05, 32.06),
    "CL": Element(17, 1.75, 1.02, 35.45),
    "AR": Element(18, 1.88, 1.06, 39.948),
    "K": Element(19, 2.40, 2.03, 39.098),
    "CA": Element(20, 2.31, 1.76, 40.078),
    "TI": Element(22, 2.40, 1.60, 47.867),
    "V": Element(23, 2.40, 1.53, 50.942),
    "CR": Element(24, 2.40, 1.39, 51.996),
    "MN": Element(25, 2.40, 1.39, 54.938),
    "FE": Element(26, 2.40, 1.32, 55.845),
    "CO": Element(27, 2.40, 1.26, 58.933),
    "NI": Element(28, 1.63, 1.24, 58.693),
    "CU": Element(29, 1.40, 1.32, 63.546),
    "ZN": Element(30, 1.39, 1.22, 65.38),
    "GA": Element(31, 1.87, 1.22, 69.723),
    "AS": Element(33, 1.85, 1.19, 74.922),
    "SE": Element(34, 1.90, 1.20, 78.971),
    "BR": Element(35, 1.85, 1.20, 79.904),
    "KR": Element(36, 2.02, 1.16, 83.798),
    "RB": Element(37, 2.40, 2.20, 85.468),
    "SR": Element(38, 2.40, 1.95, 87.62),
    "MO": Element(42, 2.40, 1.54, 95.95),
    "AG": Element(47, 1.72, 1.45, 107.87),
    "CD": Element(48, 1.58, 1.44, 112.41),
    "I": Element(53, 1.98, 1.39, 126.90),
    "XE": Element(54, 2.16, 1.40, 131.29),
    "CS": Element(55, 2.40, 2.44, 132.91),
    "BA": Element(56, 2.40, 2.15, 137.33),
    "PT": Element(78, 1.75, 1.36, 195.08),
    "AU": Element(79, 1.66, 1.36, 196.97),
    "HG": Element(80, 1.55, 1.32, 200.59),
    "PB": Element(82, 2.02, 1.46, 207.2),
}
"""Element data by upper-case symbol. An unknown symbol is the reader's business to report."""
