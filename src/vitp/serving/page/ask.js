// Vision-language models: a question, the answer as it is written, and the places that it names.

import { events } from "./api.js";
import { announce, byId, complain, calm, fill, make, save, stem } from "./dom.js";
import { OTHERS, outlines } from "./draw.js";

const BEGIN = ["What is in this image?", "Describe the image.", "Where are the buildings?"];

export function setUpAsk(app) {
  const select = byId("ask-model"), run = byId("ask-run"), stop = byId("ask-stop"), field = byId("question");
  const talk = byId("talk");
  let turns = [], shown = null, control = null;
  const list = () => app.models.filter(({ kind }) => kind === "vlm");
  const model = () => list().find(({ name }) => name === select.value);

  function ready() {
    run.disabled = Boolean(control) || !app.images[0] || !model() || !field.value.trim();
    run.title = app.images[0] ? "" : "Choose an image first";
    stop.hidden = !control;
  }

  function suggest() {
    const questions = model()?.questions?.length ? model().questions : BEGIN;
    byId("suggestions").replaceChildren(...questions.slice(0, 6).map((text) => {
      const button = make("button", { type: "button", textContent: text });
      button.addEventListener("click", () => { field.value = text; ready(); field.focus(); });
      return button;
    }));
  }

  async function ask() {
    const question = field.value.trim(), image = app.images[0];
    control = new AbortController();
    const turn = add(question);
    calm();
    announce("Asking …");
    ready();
    try {
      await app.retried(async () => {
        const form = { model: select.value, image: image.id, question };
        for await (const event of events("ask", form, control.signal)) {
          if (event.error) throw new Error(event.error);
          if (event.text) turn.text += event.text;
          if (event.done) Object.assign(turn, { text: event.answer ?? turn.text, boxes: event.boxes ?? [], done: true });
          write(turn);
        }
      });
      if (!turn.done) throw new Error("The answer broke off before its end.");
      announce(`${question} ${plain(turn.text)}`);
      field.value = "";
    } catch (error) {
      complain(error);
      if (!turn.text) drop(turn);
    }
    turn.answer.classList.remove("waiting");
    control = null;
    ready();
    point(turns.includes(turn) ? turn : null);
  }

  function add(question) {
    const answer = make("p", { class: "answer waiting" });
    const again = make("button", { type: "button", class: "again", hidden: true });
    const turn = { question, text: "", boxes: [], answer, again, image: app.images[0] };
    turn.article = make("article", {}, make("p", { class: "question", textContent: question }), answer, again);
    again.addEventListener("click", () => point(shown === turn ? null : turn));
    turns.push(turn);
    talk.append(turn.article);
    talk.hidden = false;
    talk.scrollTop = talk.scrollHeight;
    return turn;
  }

  function drop(turn) {
    turns = turns.filter((each) => each !== turn);
    turn.article.remove();
    talk.hidden = !turns.length;
  }

  /** Write an answer with its names marked; the coordinates, which the image shows, are left out. */
  function write(turn) {
    turn.answer.replaceChildren(...(tagged(turn.text) ? marked(turn.text) : [turn.text]));
    const count = turn.boxes.length;
    turn.again.hidden = !count;
    turn.again.textContent = `${shown === turn ? "Hide" : "Show"} ${count === 1 ? "the place" : `${count} places`}`;
    talk.scrollTop = talk.scrollHeight;
  }

  const tagged = (text) => /<(ref|box|quad)/.test(text);
  const plain = (text) => text.replace(/<(box|quad)>[^]*?<\/\1>/g, "").replace(/<\/?ref>/g, "");

  function marked(text) {
    const whole = text.replace(/<(box|quad)>[^]*?(<\/\1>|$)/g, "").replace(/<[^>]*$/, "");
    return whole.split(/(<ref>[^]*?(?:<\/ref>|$))/).filter(Boolean).map((part) => (
      part.startsWith("<ref>") ? make("span", { class: "label", textContent: part.replace(/<\/?ref>/g, "") }) : part
    ));
  }

  function point(turn) {
    const before = shown;
    shown = turn?.boxes.length ? turn : null;
    for (const each of [before, shown]) {
      if (!each) continue;
      each.article.classList.toggle("shown", each === shown);
      write(each);
    }
    byId("ask-downloads").hidden = !turns.some(({ done }) => done);
    app.refresh();
  }

  function shapes() {
    const labels = [...new Set(shown.boxes.map(({ label }) => label))];
    return shown.boxes.map(({ box, outline, label }) => {
      const [x1, y1, x2, y2] = box ?? [];
      return {
        corners: outline?.length ? outline : [[x1, y1], [x2, y1], [x2, y2], [x1, y2]],
        colour: OTHERS[labels.indexOf(label) % OTHERS.length], text: label ?? "",
      };
    });
  }

  const files = {
    JSON: () => save(new Blob([JSON.stringify({
      model: select.value, image: app.images[0].name,
      turns: turns.filter(({ done }) => done).map(({ question, text, boxes }) => ({ question, answer: text, boxes })),
    }, null, 2)], { type: "application/json" }), `${stem(app.images[0].name)}-answers.json`),
    PNG: () => app.savePicture(0, "answers"),
  };
  byId("ask-downloads").replaceChildren(...Object.entries(files).map(([title, work]) => {
    const button = make("button", { type: "button", textContent: title, "aria-label": `Download ${title}` });
    button.addEventListener("click", () => app.working(button, "…", async () => work()));
    return button;
  }));
  select.addEventListener("change", () => { suggest(); ready(); });
  field.addEventListener("input", ready);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!run.disabled) ask();
    }
  });
  byId("ask-form").addEventListener("submit", (event) => { event.preventDefault(); if (!run.disabled) ask(); });
  stop.addEventListener("click", () => control?.abort());

  return {
    usable: () => list().length > 0,
    imagesChanged() {
      control?.abort();
      for (const turn of [...turns]) drop(turn);
      shown = null;
      byId("ask-downloads").hidden = true;
      ready();
    },
    modelsChanged() {
      fill(select, list().map(({ name }) => [name, name]));
      byId("ask").querySelector(".none").hidden = list().length > 0;
      byId("ask-form").hidden = !list().length;
      suggest();
      ready();
    },
    layers: (number) => (number || !shown ? [] : [outlines(shapes)]),
  };
}
