// Into backbones: features as colours and the attention of a patch, one backbone or two side by side.

import { getJson, request } from "./api.js";
import { announce, byId, complain, calm, fill, make, slider } from "./dom.js";
import { frame, heat, sheet } from "./draw.js";

const WAIT = 120;

export function setUpLook(app) {
  const selects = [byId("look-a"), byId("look-b")];
  let at = null, views = [null, null], timer = 0, control = null;

  const kind = () => document.querySelector("[name=look-kind]:checked").value;
  const attention = () => kind() === "attention";
  const list = () => app.models.filter((model) => model.layers > 0 && (!attention() || model.attention));
  const named = (name) => app.models.find((model) => model.name === name);
  const chosen = () => selects.map((select) => select.value && named(select.value)).map((model) => model || null);

  const depth = (model) => model?.layers ?? 1;
  const opacity = slider("look-opacity", (value) => `${value} %`, () => app.refresh());
  const layer = slider("look-layer", (value) => `${value + 1} of ${depth(chosen()[0])}`, () => later());
  /** The slider counts the first backbone's layers; another one shows the layer at the same share of its depth. */
  const layerOf = (model) => {
    const [first] = chosen();
    if (model === first || depth(first) < 2) return Math.min(layer.value, depth(model) - 1);
    return Math.round(layer.value / (depth(first) - 1) * (depth(model) - 1));
  };
  function options() {
    const names = list().map(({ name }) => [name, name]);
    fill(selects[0], names);
    fill(selects[1], [["", "nothing"], ...names]);
    bounds();
    help();
  }

  function bounds() {
    const last = depth(chosen()[0]) - 1, old = Number(layer.input.max);
    layer.input.max = last;
    if (old !== last) layer.input.value = last;
    layer.input.disabled = last < 1;
    layer.show();
  }

  function help() {
    byId("look-help").textContent = attention()
      ? "Click a patch, or move it with the arrow keys when the image has the focus. Bright is where it looks; the patch itself is left out of the scale."
      : "The three main directions of the patch features as red, green and blue. What has one colour is alike to the backbone; hues of two backbones are only made to resemble each other.";
  }

  /** Ask again a moment after the last change. */
  function later() {
    clearTimeout(timer);
    timer = setTimeout(() => look().catch(complain), WAIT);
  }

  async function look() {
    const image = app.images[0];
    if (app.tab !== "look" || !image || !chosen()[0]) return;
    control?.abort();
    const mine = control = new AbortController();
    calm();
    at ??= [image.width / 2, image.height / 2];
    const models = chosen(), way = kind();
    let found;
    try {
      found = await app.retried(() => Promise.all(models.map((model) => model && (attention() ? attended(model, image, mine.signal) : coloured(model, image, mine.signal)))));
    } catch (error) {
      if (error.name !== "AbortError") { views = [null, null]; app.refresh(); complain(error); }
      return;
    }
    if (mine !== control || image !== app.images[0] || way !== kind()) return;
    views = found;
    readout();
    byId("look-downloads").hidden = false;
    app.refresh();
  }

  async function attended(model, image, signal) {
    const answer = await getJson("attention", { model: model.name, image: image.id, x: at[0], y: at[1], layer: layerOf(model) }, signal);
    const [row, column] = answer.patch, { rows, columns = answer.cols, values } = answer;
    const all = values.flat(), sum = all.reduce((total, value) => total + value, 0) || 1;
    const peak = Math.max(...values.flatMap((line, y) => line.filter((_, x) => y !== row || x !== column)));
    const reach = values.reduce((total, line, y) => total + line.reduce((part, value, x) => part + value * Math.hypot(y - row, x - column), 0), 0) / sum;
    return {
      model, kind: "attention", canvas: heat(values, answer.patch), rows, columns, patch: answer.patch, layer: answer.layer,
      text: `${model.name}: patch in row ${row + 1}, column ${column + 1} of ${rows} × ${columns}; strongest elsewhere ${(peak * all.length / sum).toFixed(1)} times the mean, reach ${reach.toFixed(1)} patches.`,
    };
  }

  async function coloured(model, image, signal) {
    const like = chosen()[0] === model ? "" : chosen()[0].name;
    const form = { model: model.name, image: image.id, layer: layerOf(model), like, like_layer: like && layerOf(chosen()[0]) };
    const response = await request("features", form, signal);
    const share = Number(response.headers.get("X-Explained"));
    const canvas = await createImageBitmap(await response.blob());
    return {
      model, kind: "features", canvas, layer: layerOf(model),
      text: `${model.name}: ${canvas.height} × ${canvas.width} patches; the three directions hold ${Math.round(100 * share)} % of the variance.`,
    };
  }

  function readout() {
    const text = views.filter(Boolean).map((view) => view.text).join("\n");
    byId("look-readout").replaceChildren(...text.split("\n").flatMap((line, number) => (number ? [make("br"), line] : [line])));
    announce(text);
  }

  /** The patch moves by one cell of the first backbone. */
  function arrow(dx, dy) {
    const view = views.find((each) => each?.kind === "attention"), image = app.images[0];
    if (!attention() || !view || !image) return false;
    const [row, column] = view.patch;
    const to = [Math.min(view.rows - 1, Math.max(0, row + dy)), Math.min(view.columns - 1, Math.max(0, column + dx))];
    view.patch = to;
    at = [(to[1] + 0.5) / view.columns * image.width, (to[0] + 0.5) / view.rows * image.height];
    app.refresh();
    later();
    return true;
  }

  byId("look-downloads").replaceChildren(...["PNG", "PNG of the second"].map((title, number) => {
    const button = make("button", { type: "button", textContent: title, "aria-label": `Download ${title}` });
    button.addEventListener("click", () => app.working(button, "…", () => app.savePicture(number, `${views[number].model.name}-${views[number].kind}`)));
    return button;
  }));
  for (const select of selects) select.addEventListener("change", () => { bounds(); views = [null, null]; app.refresh(); later(); });
  for (const radio of document.querySelectorAll("[name=look-kind]")) {
    radio.addEventListener("change", () => { views = [null, null]; options(); app.refresh(); later(); });
  }

  return {
    usable: () => app.models.some(({ layers }) => layers > 0),
    two: () => Boolean(chosen()[1]),
    opened: later,
    get pick() {
      return attention() ? (x, y) => { at = [x, y]; later(); } : undefined;
    },
    arrow,
    help: () => (attention() ? "Click chooses a patch, arrow keys move it. Drag or Shift with arrow keys move the image, wheel, pinch or + and − zoom." : undefined),
    caption: (number) => {
      const model = chosen()[number];
      return model && chosen()[1] ? model.name : "";
    },
    imagesChanged() {
      control?.abort();
      at = null;
      views = [null, null];
      byId("look-readout").textContent = "";
      byId("look-downloads").hidden = true;
      later();
    },
    modelsChanged() {
      const usable = app.models.some(({ layers }) => layers > 0);
      byId("look").querySelector(".none").hidden = usable;
      byId("look-form").hidden = !usable;
      options();
    },
    layers: (number) => {
      const view = views[number];
      byId("look-downloads").lastChild.hidden = !views[1];
      if (!view) return [];
      const drawn = [sheet(() => view.canvas, () => opacity.value / 100, view.kind === "attention")];
      return view.kind === "attention" ? [...drawn, frame(view.patch, view.rows, view.columns)] : drawn;
    },
  };
}
