// Finetuned models: classes, objects and class maps; thresholds and classes act on what has been received.

import { getBlob, getJson } from "./api.js";
import { announce, byId, fill, make, save, slider, stem } from "./dom.js";
import { OTHERS, bytes, css, numbers, outlines, painted, rgb, sheet } from "./draw.js";

const TASKS = {
  classification: "classification", segmentation: "segmentation", change: "change", detection: "detection",
  instance: "instances", oriented: "oriented detection",
};
const LISTED = 200, LOWEST = 5;
const WITH_OBJECTS = ["detection", "instance", "oriented"], WITH_MASK = ["segmentation", "change"];

export function setUpPredict(app) {
  const select = byId("predict-model"), run = byId("predict-run");
  const hidden = new Map(); // names of classes that are not shown, by model
  const levels = { true: 0, false: 50 }; // of maps, of all else
  let result = null, off = new Set(), rows = [], chosen = -1, sheetCanvas = null, control = null;
  const model = () => app.models.find(({ name }) => name === select.value);
  const threshold = slider("threshold", (value) => (value / 100).toFixed(2), (value) => {
    levels[WITH_MASK.includes(result?.model.task)] = value;
    chosen = -1;
    show();
  });
  const opacity = slider("opacity", (value) => `${value} %`, () => app.refresh());

  const list = () => app.models.filter(({ kind }) => kind === "task");
  const needsTwo = () => model()?.images === 2;

  function ready() {
    const missing = !app.images[0] || (needsTwo() && !app.images[1]);
    run.disabled = !model() || missing;
    run.title = run.disabled ? (needsTwo() ? "Choose an image of each date first" : "Choose an image first") : "";
  }

  function about() {
    const one = model();
    if (!one) return;
    const names = one.classes.map(({ name }) => name), few = names.slice(0, 8).join(", ");
    const bands = one.bands?.length ? ` · bands ${one.bands.join(", ")}` : "";
    byId("predict-about").textContent = `${TASKS[one.task] ?? one.task}: ${few}${names.length > 8 ? ` and ${names.length - 8} more` : ""}${bands}`;
  }

  function clear() {
    control?.abort();
    result = sheetCanvas = null;
    chosen = -1;
    byId("predict-result").hidden = true;
    ready();
  }

  async function predict() {
    const one = model(), [image, later] = app.images;
    control?.abort();
    const mine = control = new AbortController();
    await app.working(run, "Running …", async () => {
      const found = await app.retried(() => getJson("predict", form("json", LOWEST / 100), mine.signal));
      const mask = found.mask ? await numbers(bytes(found.mask.png)) : null;
      const scores = found.mask?.certainty ? await numbers(bytes(found.mask.certainty)) : null;
      if (app.images[0] !== image || app.images[1] !== later || model() !== one) return;
      const classes = one.classes.map(({ name, colour }, number) => ({ name, colour: colour ?? OTHERS[number % OTHERS.length] }));
      result = { ...found, model: one, map: mask, mapScores: scores, classes };
      // Of a map of change everything but the first class, which is where nothing changed, is of interest.
      if (!hidden.has(one.name)) hidden.set(one.name, new Set(one.task === "change" ? [classes[0].name] : []));
      off = hidden.get(one.name);
      chosen = -1;
      begin();
    });
    ready();
  }

  function form(format, least) {
    const [image, later] = app.images;
    const second = needsTwo() ? { after_image: later.id } : {};
    return { model: select.value, image: image.id, ...second, threshold: least, format, certainty: format === "json" };
  }

  function begin() {
    const { task } = result.model, seconds = result.seconds === undefined ? "" : ` in ${result.seconds.toFixed(2)} s`;
    byId("predict-result").hidden = false;
    byId("predict-title").textContent = `${TASKS[task] ?? task}${seconds}`;
    const objects = WITH_OBJECTS.includes(task), masks = WITH_MASK.includes(task);
    byId("threshold-part").hidden = masks && !result.mapScores;
    threshold.input.min = objects ? LOWEST : 0;
    threshold.input.value = levels[masks];
    threshold.show();
    byId("threshold-label").textContent = masks ? "Certainty" : "Threshold";
    byId("opacity-part").hidden = !masks;
    byId("objects-part").hidden = !objects;
    const placed = app.images[0].placed && task !== "classification";
    const formats = ["json", "png", ...(placed ? ["geojson"] : []), ...(placed && masks ? ["cog"] : [])];
    const buttons = { json: saveJson, png: () => app.savePicture(0, result.task), geojson: () => saveFile("geojson"), cog: () => saveFile("cog") };
    const titles = { json: "JSON", png: "PNG", geojson: "GeoJSON", cog: "COG" };
    byId("downloads").replaceChildren(...Object.keys(buttons).filter((name) => formats.includes(name)).map((name) => {
      const button = make("button", { type: "button", textContent: titles[name], "aria-label": `Download ${titles[name]}` });
      button.addEventListener("click", () => app.working(button, "…", buttons[name]));
      return button;
    }));
    listClasses();
    show();
    announce(summary());
  }

  // ---- what counts at this threshold

  const level = () => threshold.value / 100;
  const kept = ({ score, class: name }) => score >= level() - 1e-9 && !off.has(name);
  const objects = () => (result?.objects ?? []).filter(kept).sort((a, b) => b.score - a.score);

  function summary() {
    if (result.objects) {
      const count = objects().length;
      return `${count} object${count === 1 ? "" : "s"} at a threshold of ${level().toFixed(2)}`;
    }
    if (result.map) return `Map ready: ${shares().filter(([, share]) => share > 0).map(([name, share]) => `${name} ${percent(share)}`).join(", ")}`;
    const [best] = [...result.scores].sort((a, b) => b.score - a.score);
    return `${best.class}, ${percent(best.score)}`;
  }

  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

  const sure = () => {
    const least = Math.round(255 * level());
    return result.mapScores && least ? (at) => result.mapScores.values[at] >= least : () => true;
  };

  /** Share of the pixels of each class that are certain enough, of all pixels that the map decides. */
  function shares() {
    const counts = new Float64Array(256), seen = sure(), { values } = result.map;
    let all = 0;
    for (let at = 0; at < values.length; at++) {
      if (values[at] >= result.classes.length) continue;
      all++;
      if (seen(at)) counts[values[at]]++;
    }
    return result.classes.map(({ name }, number) => [name, all ? counts[number] / all : 0]);
  }

  const scoreOf = (name) => result.scores.find((each) => each.class === name)?.score ?? 0;

  // ---- showing it

  function listClasses() {
    rows = result.classes.map(({ name, colour }) => {
      const box = make("input", { type: "checkbox", checked: !off.has(name) });
      const swatch = make("i", {});
      swatch.style.background = css(colour);
      const row = make("li", {}, make("label", {}, box, swatch, make("b", { textContent: name }), make("span", {})));
      box.addEventListener("change", () => {
        (box.checked ? off.delete(name) : off.add(name));
        chosen = -1;
        show();
      });
      return row;
    });
    if (result.model.task === "classification") {
      rows.forEach((row, number) => {
        const bar = make("i", {});
        bar.style.background = css(result.classes[number].colour);
        row.append(make("div", { class: "meter" }, bar));
      });
    }
    const score = (number) => (result.objects || result.map ? 0 : scoreOf(result.classes[number].name));
    byId("classes").replaceChildren(...[...rows.keys()].sort((a, b) => score(b) - score(a)).map((number) => rows[number]));
  }

  function show() {
    if (!result) return;
    const texts = new Map();
    if (result.objects) for (const { name } of result.classes) texts.set(name, String(result.objects.filter((each) => each.class === name && each.score >= level() - 1e-9).length));
    else if (result.map) for (const [name, share] of shares()) texts.set(name, percent(share));
    else for (const { class: name, score } of result.scores) texts.set(name, percent(score));
    rows.forEach((row, number) => {
      const { name } = result.classes[number], score = result.objects || result.map ? 1 : scoreOf(name);
      row.querySelector("span").textContent = texts.get(name) ?? "";
      row.classList.toggle("off", off.has(name) || score < level() && !result.map && !result.objects);
      const bar = row.querySelector(".meter i");
      if (bar) bar.style.width = off.has(name) ? "0" : `${100 * score}%`;
    });
    if (result.objects) listObjects();
    if (result.map) {
      sheetCanvas = painted(result.map, (id) => {
        const known = result.classes[id];
        return known && !off.has(known.name) ? [...rgb(known.colour), 255] : null;
      }, sure());
    }
    app.refresh();
  }

  function listObjects() {
    const found = objects(), list = byId("objects");
    const below = result.objects.filter(({ score }) => score < level() - 1e-9).length;
    byId("objects-title").textContent = `${found.length} object${found.length === 1 ? "" : "s"}${below ? `, ${below} below the threshold` : ""}`;
    list.replaceChildren(...found.slice(0, LISTED).map((object, number) => {
      const swatch = make("i", {});
      swatch.style.background = css(colourOf(object.class));
      const button = make("button", { type: "button", "aria-pressed": "false" },
        swatch, make("b", { textContent: object.class }), make("span", { textContent: object.score.toFixed(2) }));
      button.addEventListener("click", () => choose(chosen === number ? -1 : number));
      return make("li", {}, button);
    }));
    if (found.length > LISTED) list.append(make("li", { class: "more", textContent: `and ${found.length - LISTED} more, drawn but not listed` }));
  }

  const colourOf = (name) => result.classes.find((each) => each.name === name)?.colour ?? OTHERS[0];

  function choose(number) {
    chosen = number;
    [...byId("objects").querySelectorAll("button")].forEach((button, at) => button.setAttribute("aria-pressed", String(at === chosen)));
    app.refresh();
    if (chosen >= 0) {
      const { box } = objects()[chosen];
      app.viewers[0].reveal(box);
    }
  }

  const corners = ({ outline, box: [x1, y1, x2, y2] }) => (outline?.length ? outline : [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]);
  const shapes = () => objects().map((object, number) => ({
    corners: corners(object), colour: colourOf(object.class), text: `${object.class} ${object.score.toFixed(2)}`,
    strong: number === chosen, faded: chosen >= 0 && number !== chosen,
  })).reverse();

  // ---- files

  function saveJson() {
    const { model: one, map, mapScores, classes, ...plain } = result;
    if (plain.objects) plain.objects = objects();
    save(new Blob([JSON.stringify({ ...plain, scores: one.task === "classification" ? result.scores : undefined, threshold: level() }, null, 2)], { type: "application/json" }), `${stem(app.images[0].name)}-${one.task}.json`);
  }

  async function saveFile(format) {
    const ending = { geojson: "geojson", cog: "tif" }[format];
    const blob = await app.retried(() => getBlob("predict", form(format, WITH_MASK.includes(result.model.task) ? LOWEST / 100 : level())));
    save(blob, `${stem(app.images[0].name)}-${result.model.task}.${ending}`);
  }

  select.addEventListener("change", () => { about(); clear(); app.slotsChanged(); app.refresh(); });
  byId("predict-form").addEventListener("submit", (event) => { event.preventDefault(); if (!run.disabled) predict(); });

  return {
    usable: () => list().length > 0,
    dates: needsTwo,
    imagesChanged: clear,
    modelsChanged() {
      fill(select, list().map(({ name, task }) => [name, `${name} · ${TASKS[task] ?? task}`]));
      byId("predict").querySelector(".none").hidden = list().length > 0;
      byId("predict-form").hidden = !list().length;
      about();
      clear();
    },
    layers: (number) => (number || !result ? [] : [
      ...(result.map ? [sheet(() => sheetCanvas, () => opacity.value / 100, false)] : []),
      ...(result.objects ? [outlines(shapes)] : []),
    ]),
  };
}
