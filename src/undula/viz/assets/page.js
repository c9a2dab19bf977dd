// The moving surface, or moving atoms (atoms.js): decode them, draw the current frame, keep time.
// Lengths are in Å, times in ps. Every text comes from the page's data through textContent.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const page = JSON.parse(byId("page").textContent);
  const count = page.times_ps.length;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const state = { index: 0, playing: false, scalar: 0, form: 0, overlay: false, halo: true, moved: false, dirty: true };

  const PLAY = "M8 5v14l11-7z";
  const PAUSE = "M7 5h4v14H7zM13 5h4v14h-4z";
  const PLAIN = [0.8, 0.81, 0.83];
  const GHOST = 0x4f83a8;
  const COLOURS = 9; // row-0 … row-8 of page.css

  // ---- Words -------------------------------------------------------------------------------

  const inNanoseconds = Math.max(...page.times_ps.map(Math.abs)) >= 1000;
  const unit = inNanoseconds ? "ns" : "ps";
  const shownTimes = page.times_ps.map((time) => (inNanoseconds ? time / 1000 : time));
  const decimals = decimalsThatTell(shownTimes);

  // The fewest decimals, at most four, with which neighbouring times look different.
  function decimalsThatTell(values) {
    const gaps = values.slice(1).map((value, i) => value - values[i]);
    const smallest = Math.min(Math.abs(values[0]) || Infinity, ...gaps);
    for (let places = 0; places < 4; places++) {
      const rest = smallest * 10 ** places;
      if (!isFinite(rest) || (rest >= 0.99 && Math.abs(rest - Math.round(rest)) < 0.01)) return places;
    }
    return 4;
  }

  const bareTime = (index) => shownTimes[index].toFixed(decimals);
  const timeText = (index) => `${bareTime(index)} ${unit}`;
  const short = (value) => String(Number(value.toPrecision(3)));

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function fault(text) {
    byId("fault").textContent = text;
    byId("fault").hidden = false;
  }

  // ---- Meshes ------------------------------------------------------------------------------

  async function inflated(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Numbers were written as differences to the one before, their bytes in planes, lowest first.
  function reader(bytes) {
    let at = 0;
    return (length, width) => {
      const values = new Uint32Array(length);
      for (let plane = 0; plane < width; plane++, at += length) {
        for (let i = 0; i < length; i++) values[i] |= bytes[at + i] << (8 * plane);
      }
      const mask = width === 4 ? 0xffffffff : 2 ** (8 * width) - 1;
      for (let i = 1; i < length; i++) values[i] = (values[i] + values[i - 1]) & mask;
      return values;
    };
  }

  function decoded(bytes) {
    const next = reader(bytes);
    return [...page.views, ...page.others].map((view) =>
      view.sizes.map(([vertices, faces]) => {
        const positions = new Float32Array(3 * vertices);
        for (let axis = 0; axis < 3; axis++) {
          const steps = next(vertices, 2);
          const scale = page.box.size[axis] / 65535;
          for (let i = 0; i < vertices; i++) positions[3 * i + axis] = page.box.low[axis] + scale * steps[i];
        }
        const frame = { positions };
        if (!page.atoms) {
          frame.indices = next(3 * faces, vertices > 65536 ? 4 : 2);
          frame.openness = next(vertices, 1);
        }
        frame.scalars = page.scalars.map((_, i) => (view.scalars[i] ? next(vertices, 1) : null));
        return frame;
      }),
    );
  }

  // Area-weighted normals of length one.
  function vertexNormals({ positions, indices }) {
    const normals = new Float32Array(positions.length);
    for (let face = 0; face < indices.length; face += 3) {
      const [a, b, c] = [3 * indices[face], 3 * indices[face + 1], 3 * indices[face + 2]];
      const ux = positions[b] - positions[a], uy = positions[b + 1] - positions[a + 1], uz = positions[b + 2] - positions[a + 2];
      const vx = positions[c] - positions[a], vy = positions[c + 1] - positions[a + 1], vz = positions[c + 2] - positions[a + 2];
      const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
      for (const corner of [a, b, c]) {
        normals[corner] += nx;
        normals[corner + 1] += ny;
        normals[corner + 2] += nz;
      }
    }
    for (let i = 0; i < normals.length; i += 3) {
      const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
      for (let axis = 0; axis < 3; axis++) normals[i + axis] /= length;
    }
    return normals;
  }

  // ---- Colours -----------------------------------------------------------------------------

  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const mapColours = page.colours.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const mapLight = mapColours.map((colour) => colour.map((value) => linear(value / 255)));
  const plainLight = PLAIN.map(linear);
  const atoms = page.atoms ? drawnAtoms(page, { linear, mapLight, plainLight }) : null;

  // The colour of each vertex, darker where the surface lies in a hollow.
  function vertexColours({ openness, scalars }) {
    const steps = scalars[state.scalar];
    const colours = new Float32Array(3 * openness.length);
    for (let i = 0; i < openness.length; i++) {
      const shade = 0.3 + 0.7 * (openness[i] / 255) ** 0.8;
      const light = steps ? mapLight[steps[i]] : plainLight;
      for (let channel = 0; channel < 3; channel++) colours[3 * i + channel] = shade * light[channel];
    }
    return colours;
  }

  // ---- Scene -------------------------------------------------------------------------------

  const stage = byId("stage");
  const canvas = byId("canvas");
  let renderer, camera, orbit, frames, views;
  let ghosts = [];

  function madeViews() {
    stage.classList.toggle("double", page.views.length > 1);
    return page.views.map(({ name }, i) => {
      const box = byId("views").appendChild(element("div", "view"));
      const label = box.appendChild(element("p", "view-name", name));
      const remark = label.appendChild(element("small"));
      const empty = box.appendChild(element("p", "no-surface", "no surface at this time"));
      empty.hidden = true;
      const scene = new THREE.Scene();
      const material = new THREE.MeshStandardMaterial({ vertexColors: true, roughness: 0.72 });
      const mesh = new THREE.Mesh(new THREE.BufferGeometry(), material);
      mesh.frustumCulled = false;
      scene.add(mesh);
      const halo = atoms ? withHalo(scene) : null;
      if (atoms) scene.add(atoms.edges());
      return { i, box, remark, empty, scene, mesh, halo, lights: withLights(scene) };
    });
  }

  function withHalo(scene) {
    const material = new THREE.MeshStandardMaterial({ vertexColors: true, roughness: 1, transparent: true, opacity: 0.16, depthWrite: false });
    const halo = new THREE.Mesh(new THREE.BufferGeometry(), material);
    halo.frustumCulled = false;
    scene.add(halo);
    return halo;
  }

  // Two lights that stay with the viewer, and the sky.
  function withLights(scene) {
    const lights = [[-0.45, 0.6, 0.66, 1.9], [0.75, -0.1, 0.65, 0.5]].map(([x, y, z, strength]) => {
      const light = new THREE.DirectionalLight(0xffffff, strength);
      light.userData.toward = [x, y, z];
      scene.add(light, light.target);
      return light;
    });
    const sky = new THREE.HemisphereLight(0xffffff, 0xaaa39c, 1.5);
    scene.add(sky);
    return { lights, sky };
  }

  // The truth as a pale skin over the forecast: depth first, so that only its front is seen.
  function madeGhost(scene) {
    const shared = { color: GHOST, roughness: 0.9, transparent: true };
    const depth = new THREE.MeshStandardMaterial({ ...shared, colorWrite: false });
    const skin = new THREE.MeshStandardMaterial({ ...shared, opacity: 0.42 });
    return [depth, skin].map((material, i) => {
      const ghost = new THREE.Mesh(new THREE.BufferGeometry(), material);
      ghost.renderOrder = i + 1;
      ghost.frustumCulled = false;
      ghost.visible = false;
      scene.add(ghost);
      return ghost;
    });
  }

  function geometry(frame) {
    if (atoms) return atoms.geometry(frame, state.scalar);
    const made = new THREE.BufferGeometry();
    made.setAttribute("position", new THREE.BufferAttribute(frame.positions, 3));
    made.setAttribute("normal", new THREE.BufferAttribute(vertexNormals(frame), 3));
    made.setAttribute("color", new THREE.BufferAttribute(vertexColours(frame), 3));
    made.setIndex(new THREE.BufferAttribute(frame.indices, 1));
    return made;
  }

  // The last view is the forecast's; it may show one of the others, a sample, instead.
  const sets = [...page.views, ...page.others];
  const forms = page.others.length ? [page.form, ...page.others.map(({ name }) => name)] : [];
  const ofForecast = (view) => view.i === page.views.length - 1;
  const shown = (view) => (ofForecast(view) ? view.i + state.form : view.i);

  // Only the current frame's geometry is on the graphics card.
  function showFrame() {
    for (const view of views) {
      const frame = frames[shown(view)][state.index];
      const isEmpty = frame.positions.length === 0;
      view.mesh.geometry.dispose();
      view.mesh.geometry = geometry(frame);
      view.mesh.visible = !isEmpty;
      if (atoms) {
        view.halo.geometry.dispose();
        view.halo.geometry = atoms.halo(frame);
        view.halo.visible = state.halo && state.form === 0 && atoms.isSpread(frame);
      }
      view.empty.hidden = !isEmpty;
      const remarks = ofForecast(view) && forms.length ? [forms[state.form]] : [];
      const isKnown = sets[shown(view)].scalars[state.scalar] || page.scalars[state.scalar].elements;
      if (!isKnown) remarks.push("not coloured: this number is not known here");
      view.remark.textContent = remarks.join("; ");
    }
    for (const ghost of ghosts) {
      ghost.geometry = views[0].mesh.geometry;
      ghost.visible = state.overlay && views[0].mesh.visible;
    }
    state.dirty = true;
  }

  // Put the camera where the whole of every frame fits into a view.
  function frameAll() {
    const [right, up, toward] = page.view.axes;
    const [across, high, deep] = page.view.half;
    const { clientWidth, clientHeight } = views[0].box;
    const slope = Math.tan((camera.fov * Math.PI) / 360);
    orbit.enableDamping = false;
    orbit.update(); // spends what is left of a swing
    const distance = deep / 2 + 1.06 * Math.max(high, across / (clientWidth / clientHeight)) / slope;
    camera.up.set(...up);
    camera.position.set(...page.view.centre.map((value, i) => value + distance * toward[i]));
    camera.near = distance / 50;
    camera.far = distance * 20;
    orbit.target.set(...page.view.centre);
    orbit.minDistance = distance / 8;
    orbit.maxDistance = distance * 4;
    orbit.update();
    orbit.enableDamping = true;
    state.dirty = true;
  }

  function resize() {
    renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    renderer.setSize(stage.clientWidth, stage.clientHeight, false);
    camera.aspect = views[0].box.clientWidth / views[0].box.clientHeight;
    camera.updateProjectionMatrix();
    if (!state.moved) frameAll();
    state.dirty = true;
  }

  function draw() {
    const outer = canvas.getBoundingClientRect();
    renderer.setScissorTest(true);
    for (const { box, scene, lights } of views) {
      for (const light of lights.lights) {
        light.position.set(...light.userData.toward).applyQuaternion(camera.quaternion).add(orbit.target);
        light.target.position.copy(orbit.target);
      }
      lights.sky.position.set(0, 1, 0).applyQuaternion(camera.quaternion);
      const area = box.getBoundingClientRect();
      const place = [area.left - outer.left, outer.bottom - area.bottom, area.width, area.height];
      renderer.setViewport(...place);
      renderer.setScissor(...place);
      renderer.render(scene, camera);
    }
    undula.draws += 1;
    state.dirty = false;
  }

  // ---- Time --------------------------------------------------------------------------------

  let lastStep = 0;

  function seek(index) {
    state.index = Math.max(0, Math.min(count - 1, Math.round(index)));
    byId("slider").value = state.index;
    byId("slider").setAttribute("aria-valuetext", timeText(state.index));
    byId("time").textContent = timeText(state.index);
    showFrame();
    chart.move();
  }

  function play(playing) {
    state.playing = playing && count > 1;
    byId("play-icon").setAttribute("d", state.playing ? PAUSE : PLAY);
    byId("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
    lastStep = performance.now();
  }

  // At speed 1 the whole lasts about ten seconds; the last frame is held a little.
  function tick(now) {
    requestAnimationFrame(tick);
    const perSecond = Number(byId("speed").value) * Math.max(4, Math.min(24, count / 10));
    const wait = (1000 / perSecond) * (state.index === count - 1 ? 3 : 1);
    if (state.playing && now - lastStep >= wait) {
      lastStep = now;
      seek((state.index + 1) % count);
    }
    orbit.update();
    if (state.dirty) draw();
  }

  // ---- Chart -------------------------------------------------------------------------------

  const chart = madeChart();

  function madeChart() {
    if (!page.series.length) return { move() {}, resize() {} };
    const home = byId("chart");
    const margin = { left: 44, right: 10, top: 8, bottom: 34 };
    const height = 210;
    const known = page.series.flatMap(({ values }) => values).filter((value) => value !== null);
    const lowest = Math.min(...known), highest = Math.max(...known);
    const room = 0.06 * (highest - lowest || Math.abs(highest) || 1);
    const low = lowest - room, high = highest + room;
    const ticks = niceTicks(low, high, 5).filter((tick) => tick >= low && tick <= high);
    const first = shownTimes[0], last = shownTimes[count - 1];
    let width, x, y, cursor, dots;

    byId("chart-section").hidden = false;
    byId("chart-title").textContent = `${page.score_label} over time`;
    const readings = page.series.map(({ name }, i) => {
      const row = byId("chart-rows").appendChild(element("li"));
      row.append(element("i", `row-${i % COLOURS}`), `${name} `);
      return row.appendChild(element("b"));
    });

    function drawn(tag, attributes, text) {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      if (text !== undefined) made.textContent = text;
      return made;
    }

    function line(values) {
      let pen = "M";
      return values
        .map((value, i) => {
          if (value === null) return (pen = "M"), "";
          const step = `${pen}${x(shownTimes[i]).toFixed(1)} ${y(value).toFixed(1)}`;
          return (pen = "L"), step;
        })
        .join("");
    }

    function resize() {
      width = home.clientWidth;
      const inner = width - margin.left - margin.right;
      const tall = height - margin.top - margin.bottom;
      x = (time) => margin.left + (last > first ? (time - first) / (last - first) : 0.5) * inner;
      y = (value) => margin.top + (1 - (value - low) / (high - low)) * tall;
      const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": byId("chart-title").textContent });
      for (const tick of ticks) {
        svg.append(drawn("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y(tick), y2: y(tick) }));
        svg.append(drawn("text", { x: margin.left - 8, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
      }
      const bottom = height - margin.bottom;
      for (const tick of niceTicks(first, last, Math.max(2, inner / 90)).filter((t) => t >= first && t <= last)) {
        svg.append(drawn("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, short(tick)));
      }
      svg.append(drawn("text", { x: width - margin.right, y: height - 2, "text-anchor": "end" }, `time, ${unit}`));
      page.series.toReversed().forEach(({ values }, back) => {
        const i = page.series.length - 1 - back;
        svg.append(drawn("path", { class: `row row-${i % COLOURS}`, d: line(values), "stroke-dasharray": i === 0 ? "none" : ["6 4", "2 4", "8 3 2 3"][(i - 1) % 3] }));
      });
      cursor = svg.appendChild(drawn("line", { class: "cursor", y1: margin.top, y2: bottom }));
      dots = page.series.map((_, i) => svg.appendChild(drawn("circle", { class: `row-${i % COLOURS}`, r: 3.5 })));
      svg.addEventListener("pointerdown", follow);
      svg.addEventListener("pointermove", (event) => event.buttons && follow(event));
      home.replaceChildren(svg);
      move();
    }

    function follow(event) {
      const at = event.clientX - home.getBoundingClientRect().left;
      const gaps = shownTimes.map((time) => Math.abs(x(time) - at));
      seek(gaps.indexOf(Math.min(...gaps)));
    }

    function move() {
      if (!x) return;
      const at = x(shownTimes[state.index]);
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      page.series.forEach(({ values }, i) => {
        const value = values[state.index];
        dots[i].setAttribute("visibility", value === null ? "hidden" : "visible");
        dots[i].setAttribute("cx", at);
        dots[i].setAttribute("cy", value === null ? 0 : y(value));
        readings[i].textContent = value === null ? "–" : short(value);
      });
    }

    return { move, resize };
  }

  // Round numbers that begin at or below the lowest and end at or above the highest.
  function niceTicks(lowest, highest, wanted) {
    const span = highest - lowest || Math.abs(highest) || 1;
    const size = 10 ** Math.floor(Math.log10(span / wanted));
    const step = size * [1, 2, 2.5, 5, 10].find((factor) => span / (size * factor) <= wanted);
    const from = Math.floor(lowest / step + 1e-9);
    const to = Math.max(from + 1, Math.ceil(highest / step - 1e-9));
    return Array.from({ length: to - from + 1 }, (_, i) => (from + i) * step);
  }

  // ---- Legend and controls -----------------------------------------------------------------

  function showLegend() {
    const { label, top, elements } = page.scalars[state.scalar];
    byId("legend-bar").hidden = Boolean(elements);
    if (elements) {
      byId("legend-ticks").replaceChildren(
        ...elements.map(({ name, colour }) => {
          const entry = element("span", "swatch", name);
          const patch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
          const disc = patch.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "circle"));
          for (const [key, value] of Object.entries({ cx: 5, cy: 5, r: 4.5, fill: colour })) disc.setAttribute(key, value);
          patch.setAttribute("viewBox", "0 0 10 10");
          entry.prepend(patch);
          return entry;
        }),
      );
      return;
    }
    byId("legend-ticks").replaceChildren(
      ...[0, 0.5].map((share) => element("span", "", short(share * top))),
      element("span", "", `≥ ${short(top)}`),
    );
    byId("legend-bar").setAttribute("aria-label", `Colours from 0 to ${short(top)}: ${label}`);
  }

  function makeLegend() {
    const pen = byId("legend-bar").getContext("2d");
    mapColours.forEach((colour, i) => {
      pen.fillStyle = `rgb(${colour.join(" ")})`;
      pen.fillRect(i, 0, 1, 1);
    });
    const choice = byId("legend-choice");
    if (page.scalars.length === 1) {
      choice.textContent = page.scalars[0].label;
    } else {
      const select = choice.appendChild(element("select"));
      select.id = "scalar";
      select.setAttribute("aria-label", "Colour by");
      select.append(...page.scalars.map(({ label }) => element("option", "", label)));
      select.addEventListener("change", () => {
        state.scalar = select.selectedIndex;
        showLegend();
        showFrame();
      });
    }
    showLegend();
  }

  function resetView() {
    state.moved = false;
    frameAll();
  }

  function onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const focused = event.target.closest("select, input, button");
    const movesItself = focused && (event.key === " " ? focused.type !== "range" : focused.type !== "button");
    if (movesItself && event.key.toLowerCase() !== "r") return;
    const acts = {
      " ": () => play(!state.playing),
      ArrowRight: () => seek(state.index + 1),
      ArrowLeft: () => seek(state.index - 1),
      Home: () => seek(0),
      End: () => seek(count - 1),
      r: resetView,
    };
    const act = acts[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    if (event.key.startsWith("Arrow")) play(false);
    act();
  }

  function connect() {
    const slider = byId("slider");
    slider.max = count - 1;
    slider.addEventListener("input", () => {
      play(false);
      seek(Number(slider.value));
    });
    byId("play").addEventListener("click", () => play(!state.playing));
    byId("reset").addEventListener("click", resetView);
    document.addEventListener("keydown", onKey);
    if (page.views.length > 1) {
      byId("overlay-choice").hidden = false;
      byId("overlay-text").textContent = `Lay ${page.views[0].name} over ${page.views[1].name}`;
      byId("overlay").addEventListener("change", ({ target }) => {
        state.overlay = target.checked;
        showFrame();
      });
    }
    if (forms.length) {
      byId("form-choice").hidden = false;
      const select = byId("form");
      select.append(...forms.map((name) => element("option", "", name)));
      select.addEventListener("change", () => {
        state.form = select.selectedIndex;
        showFrame();
      });
    }
    if (atoms && frames.flat().some(atoms.isSpread)) {
      byId("halo-choice").hidden = false;
      byId("halo").addEventListener("change", ({ target }) => {
        state.halo = target.checked;
        showFrame();
      });
    }
    orbit.addEventListener("change", () => (state.dirty = true));
    orbit.addEventListener("start", () => (state.moved = true));
    new ResizeObserver(() => {
      resize();
      chart.resize();
      draw();
    }).observe(stage);
    for (const control of [slider, byId("play")]) control.disabled = count < 2;
  }

  // ---- Begin -------------------------------------------------------------------------------

  // What the tests look at; nothing here is needed to draw.
  const undula = {
    ready: false,
    draws: 0,
    frames: count,
    views: page.views.length,
    get index() { return state.index; },
    get time_ps() { return page.times_ps[state.index]; },
    get playing() { return state.playing; },
    get form() { return state.form; },
    get camera() { return camera.position.toArray(); },
    seek,
    play: () => play(true),
    pause: () => play(false),
  };
  window.undula = undula;

  async function begin() {
    byId("span").textContent =
      count === 1 ? timeText(0) : `${count} times, ${bareTime(0)} – ${timeText(count - 1)}`;
    canvas.setAttribute("aria-label", `${atoms ? "Atoms" : "Surface"} of ${page.title}, ${page.views.map(({ name }) => name).join(" beside ")}`);
    makeLegend();
    if (typeof DecompressionStream === "undefined") {
      return fault("This browser is too old to unpack this page; any of 2023 or later will do.");
    }
    try {
      renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true });
    } catch {
      return fault("This browser offers no WebGL 2, which this page is drawn with.");
    }
    frames = decoded(await inflated(byId("meshes").textContent));
    byId("meshes").remove();
    camera = new THREE.PerspectiveCamera(28, 1, 1, 1000);
    camera.up.set(...page.view.axes[1]);
    views = madeViews();
    if (views.length > 1) ghosts = madeGhost(views[1].scene);
    orbit = new THREE.OrbitControls(camera, canvas);
    orbit.dampingFactor = 0.12;
    connect();
    resize();
    chart.resize();
    seek(0);
    play(!still.matches);
    undula.ready = true;
    requestAnimationFrame(tick);
  }

  begin().catch((error) => {
    fault("What this page shows could not be unpacked.");
    throw error;
  });
})();
