// Atoms as balls, bonds as sticks, uncertainty as halos, the box as thin rods: all plain triangles.
// Lengths are in Å.
"use strict";

function drawnAtoms(page, { linear, mapLight, plainLight }) {
  const { radii, bonds, colours, edges, spread } = page.atoms;
  const count = radii.length;
  const STICK = 0.11, ROD = 0.06, SIDES = 8;
  const EDGE = [0.35, 0.36, 0.38];
  const elementLight = colours.map((hex) => [1, 3, 5].map((i) => linear(parseInt(hex.slice(i, i + 2), 16) / 255)));
  const ball = icosphere(count <= 600 ? 2 : count <= 3000 ? 1 : 0);
  const coarse = icosphere(count <= 3000 ? 1 : 0);

  // A ball of radius one, from an icosahedron whose triangles are cut in four.
  function icosphere(cuts) {
    const t = (1 + Math.sqrt(5)) / 2;
    const points = [[-1, t, 0], [1, t, 0], [-1, -t, 0], [1, -t, 0], [0, -1, t], [0, 1, t], [0, -1, -t], [0, 1, -t], [t, 0, -1], [t, 0, 1], [-t, 0, -1], [-t, 0, 1]].map(unit);
    let faces = [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4], [11, 10, 2], [10, 7, 6], [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8], [3, 8, 9], [4, 9, 5], [2, 4, 11], [6, 2, 10], [8, 6, 7], [9, 8, 1]];
    for (let cut = 0; cut < cuts; cut++) {
      const middles = new Map();
      const middle = (a, b) => {
        const key = a < b ? `${a} ${b}` : `${b} ${a}`;
        if (!middles.has(key)) middles.set(key, points.push(unit(points[a].map((value, axis) => value + points[b][axis]))) - 1);
        return middles.get(key);
      };
      faces = faces.flatMap(([a, b, c]) => {
        const [ab, bc, ca] = [middle(a, b), middle(b, c), middle(c, a)];
        return [[a, ab, ca], [b, bc, ab], [c, ca, bc], [ab, bc, ca]];
      });
    }
    return { points, faces: faces.flat() };
  }

  function unit(vector) {
    const length = Math.hypot(...vector) || 1;
    return vector.map((value) => value / length);
  }

  // Room for so many vertices and corners, filled from the front.
  function triangles(vertices, corners) {
    return { positions: new Float32Array(3 * vertices), normals: new Float32Array(3 * vertices), colours: new Float32Array(3 * vertices), index: new Uint32Array(corners), vertex: 0, corner: 0 };
  }

  function addVertex(to, place, normal, light) {
    to.positions.set(place, 3 * to.vertex);
    to.normals.set(normal, 3 * to.vertex);
    to.colours.set(light, 3 * to.vertex);
    to.vertex += 1;
  }

  function addBall(to, shape, centre, radius, light) {
    for (const corner of shape.faces) to.index[to.corner++] = to.vertex + corner;
    for (const point of shape.points) addVertex(to, point.map((value, axis) => centre[axis] + radius * value), point, light);
  }

  function addRod(to, from, end, radius, light) {
    const along = unit(end.map((value, axis) => value - from[axis]));
    const [x, y, z] = along;
    const across = unit(Math.abs(x) < 0.8 ? [0, z, -y] : [-z, 0, x]);
    const other = [y * across[2] - z * across[1], z * across[0] - x * across[2], x * across[1] - y * across[0]];
    for (let side = 0; side < SIDES; side++) {
      const next = (side + 1) % SIDES;
      for (const corner of [2 * side, 2 * next, 2 * side + 1, 2 * next, 2 * next + 1, 2 * side + 1]) to.index[to.corner++] = to.vertex + corner;
    }
    for (let side = 0; side < SIDES; side++) {
      const [c, s] = [Math.cos((2 * Math.PI * side) / SIDES), Math.sin((2 * Math.PI * side) / SIDES)];
      const normal = across.map((value, axis) => c * value + s * other[axis]);
      for (const place of [from, end]) addVertex(to, place.map((value, axis) => value + radius * normal[axis]), normal, light);
    }
  }

  function made(from) {
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.BufferAttribute(from.positions, 3));
    geometry.setAttribute("normal", new THREE.BufferAttribute(from.normals, 3));
    geometry.setAttribute("color", new THREE.BufferAttribute(from.colours, 3));
    geometry.setIndex(new THREE.BufferAttribute(from.index, 1));
    return geometry;
  }

  const place = (frame, atom) => [0, 1, 2].map((axis) => frame.positions[3 * atom + axis]);

  function light(frame, scalar, atom) {
    if (page.scalars[scalar].elements) return elementLight[atom];
    const steps = frame.scalars[scalar];
    return steps ? mapLight[steps[atom]] : plainLight;
  }

  function geometry(frame, scalar) {
    const to = triangles(count * ball.points.length + bonds.length * 4 * SIDES, count * ball.faces.length + bonds.length * 12 * SIDES);
    for (let atom = 0; atom < count; atom++) addBall(to, ball, place(frame, atom), radii[atom], light(frame, scalar, atom));
    for (const [a, b] of bonds) {
      const [from, end] = [place(frame, a), place(frame, b)];
      const middle = from.map((value, axis) => (value + end[axis]) / 2);
      addRod(to, from, middle, STICK, light(frame, scalar, a));
      addRod(to, end, middle, STICK, light(frame, scalar, b));
    }
    return made(to);
  }

  const isSpread = (frame) => spread >= 0 && Boolean(frame.scalars[spread]);

  function halo(frame) {
    if (!isSpread(frame)) return new THREE.BufferGeometry();
    const steps = frame.scalars[spread];
    const to = triangles(count * coarse.points.length, count * coarse.faces.length);
    for (let atom = 0; atom < count; atom++) {
      const radius = (steps[atom] / 255) * page.scalars[spread].top;
      addBall(to, coarse, place(frame, atom), radii[atom] + radius, mapLight[steps[atom]]);
    }
    return made(to);
  }

  function boxEdges() {
    const to = triangles(edges.length * 2 * SIDES, edges.length * 6 * SIDES);
    for (const [from, end] of edges) addRod(to, from, end, ROD, EDGE);
    return new THREE.Mesh(made(to), new THREE.MeshStandardMaterial({ vertexColors: true, roughness: 1 }));
  }

  return { geometry, halo, isSpread, edges: boxEdges };
}
