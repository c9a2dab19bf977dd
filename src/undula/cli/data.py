"""``undula data``: list, fetch, split and verify."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from undula import atomic
from undula.cli.options import parse, parser, run_action, seed
from undula.errors import InputError, UsageError
from undula.locks import claimed


def run(words: Sequence[str]) -> int:
    """Run one of the actions on data."""
    actions = {
        "list": ("what can be fetched, its licence and its size", _list),
        "fetch": ("bring published trajectories: atlas NAME…, or ala2", _fetch),
        "split": ("training, validation and test sets by sequence identity", _split),
        "verify": ("compare data sets and fetched folders with their SHA-256", _verify),
    }
    return run_action("data", actions, words)


def _list(words: Sequence[str]) -> int:
    parse(parser("data list", "Say what can be fetched."), words)

    from undula.data import atlas, mdshare

    for name, what, source, option in (
        (
            "atlas",
            "1,390 single-chain proteins, 3 replicas of 100 ns each, about 600 MB a protein",
            atlas,
            "--url",
        ),
        ("ala2", "alanine dipeptide, 3 trajectories of 250 ns, 129 MB", mdshare, "--base"),
    ):
        print(f"{name:<8}{what}")
        for key in ("source", "licence", "cite"):
            print(f"        {key}: {source.TERMS[key]}")
        print(f"        address: {source.BASE_URL} (another: {option}, or {source.URL_VARIABLE})")
    return 0


def _fetch(words: Sequence[str]) -> int:
    if words and words[0] == "ala2":
        return _fetch_ala2(words[1:])
    p = parser(
        "data fetch",
        "Bring proteins of a database; what was cut goes on. "
        "undula data fetch ala2 brings the alanine dipeptide of mdshare.",
    )
    p.add_argument("source", choices=["atlas"], help="the database")
    p.add_argument("names", nargs="*", default=[], help="PDB code and chain, such as 1k5n_A")
    p.add_argument("--split", help="take the names from this split file, instead")
    p.add_argument("--part", choices=["train", "validation", "test"], help="of the split file")
    p.add_argument("-o", "--out", required=True, help="the folder in which each gets a folder")
    p.add_argument("--url", help="another address, with {name} where the name belongs")
    p.add_argument("--sha256", help="of the archive, if one protein is fetched and it is known")
    options = parse(p, words)

    from undula.data.atlas import TERMS, check_name, fetch
    from undula.data.splits import load_split

    if bool(options.names) == bool(options.split) or bool(options.split) != bool(options.part):
        raise UsageError("undula data fetch: give names, or --split with --part")
    chosen = options.names or getattr(load_split(Path(options.split)), options.part)
    names = [check_name(name) for name in dict.fromkeys(chosen)]
    if options.sha256 and len(names) != 1:
        raise UsageError(f"undula data fetch: --sha256 is of one archive, not of {len(names)}")
    print(f"licence: {TERMS['licence']}", file=sys.stderr)
    skipped: list[str] = []
    for name in names:
        try:
            folder = fetch(
                name,
                Path(options.out),
                base_url=options.url,
                sha256=options.sha256,
                say=lambda line: print(line, file=sys.stderr),
            )
        except InputError as error:
            if len(names) == 1:
                raise
            print(f"undula: {name} was skipped: {error}", file=sys.stderr)
            skipped.append(name)
        else:
            print(folder)
    return 6 if skipped else 0


def _fetch_ala2(words: Sequence[str]) -> int:
    p = parser(
        "data fetch ala2", "Bring alanine dipeptide of mdshare, 129 MB; what was cut goes on."
    )
    p.add_argument("-o", "--out", required=True, help="the folder in which ala2 is made")
    p.add_argument("--base", help="another address, or a folder, that has the files")
    options = parse(p, words)

    from undula.data.mdshare import TERMS, fetch

    print(f"licence: {TERMS['licence']}", file=sys.stderr)
    folder = fetch(
        Path(options.out), base=options.base, say=lambda line: print(line, file=sys.stderr)
    )
    print(folder)
    return 0


def _split(words: Sequence[str]) -> int:
    p = parser("data split", "Divide proteins so that no two parts hold similar sequences.")
    p.add_argument("files", nargs="+", help="FASTA, CSV (name, seqres) or data set folders")
    p.add_argument(
        "--counts", nargs=3, type=int, required=True, help="of training, validation and test"
    )
    p.add_argument("-o", "--out", required=True, help="the split file to write")
    p.add_argument("--seed", type=seed, default=0)
    p.add_argument(
        "--rule",
        choices=["families", "singletons"],
        default="families",
        help="families: whole groups of similar proteins; singletons: the paper's, validation and "
        "test from proteins without relatives",
    )
    p.add_argument("--identity", type=float, default=0.4, help="from which two are similar")
    p.add_argument("--coverage", type=float, default=0.8, help="that a cluster asks for")
    p.add_argument(
        "--coverage-mode", type=int, default=0, help="0 both sequences, 1 member, 2 representative"
    )
    p.add_argument("--evalue", type=float, default=1e-3, help="above which nothing counts")
    p.add_argument("--program", choices=["auto", "mmseqs", "undula"], default="auto")
    p.add_argument("--threads", type=int, default=1)
    options = parse(p, words)

    from undula.data.similarity import SimilarityConfig, similarity
    from undula.data.splits import check_counts, families, split, write_split
    from undula.io.sequences import load_sequences

    config = SimilarityConfig(
        identity=options.identity,
        coverage=options.coverage,
        coverage_mode=options.coverage_mode,
        evalue=options.evalue,
        program=options.program,
        threads=options.threads,
    )
    sequences = load_sequences([Path(file) for file in options.files])
    train, validation, test = options.counts
    counts = train, validation, test
    check_counts(counts, len(sequences))
    out = Path(options.out)
    with claimed(out.parent, within=False):
        found = similarity(sequences, config)
        chosen = split(families(found), counts, options.seed, options.rule)
        written = write_split(
            out, sequences, found, config, chosen, seed=options.seed, rule=options.rule
        )
    numbers = written["numbers"]
    print(f"program: {found.program} {found.version}")
    print(
        f"at {config.identity:.0%} identity and {config.coverage:.0%} coverage: "
        f"{numbers['coverage']['count']} clusters, {numbers['coverage']['in_two_parts']} in two "
        "parts"
    )
    print(
        f"at {config.identity:.0%} identity and any coverage: {numbers['any_coverage']['pairs']} "
        f"pairs, {numbers['any_coverage']['pairs_in_two_parts']} in two parts; "
        f"{numbers['any_coverage']['sequences_in_none']} sequences without relatives"
    )
    print(f"{out}: {', '.join(f'{n} {part}' for part, n in written['counts'].items())}")
    return 0


def _verify(words: Sequence[str]) -> int:
    p = parser("data verify", "Compare every file with the SHA-256 in its folder's record.")
    p.add_argument(
        "folders", nargs="+", help="data sets, recordings, or what undula data fetch made"
    )
    options = parse(p, words)

    from undula.io.datasets import open_dataset
    from undula.io.downloads import verify_fetched
    from undula.io.recordings import KIND, open_recordings

    for folder in map(Path, options.folders):
        if (folder / f"{folder.resolve().name}.json").exists():
            print(f"{folder}: {len(verify_fetched(folder)['files'])} files as fetched")
        elif (folder / "manifest.json").exists() and (
            atomic.read_json(folder / "manifest.json").get("kind") == KIND
        ):
            recordings = open_recordings(folder)
            recordings.verify()
            print(f"{folder}: {len(recordings.manifest['files'])} files as recorded")
        else:
            dataset = open_dataset(folder, verify=True)
            print(f"{folder}: {len(dataset.manifest['files'])} files as prepared")
    return 0
