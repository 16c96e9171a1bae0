"use strict";

const byId = (id) => document.getElementById(id);
const toggle = byId("toggle");
const topK = byId("top-k");
let shown = null; // the last state
let count = null; // sounds to show

const WORDS = {
  stopped: "Stopped.",
  listening: "Listening …",
  ended: "The recording has ended.",
  failed: "Listening failed.",
};

/** Change a text only where it differs, so that screen readers are not disturbed. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function newRow() {
  const row = document.createElement("li");
  for (const name of ["rank", "name", "bar", "score"]) {
    const cell = document.createElement(name === "bar" ? "div" : "span");
    cell.className = name;
    row.append(cell);
  }
  const bar = row.querySelector(".bar");
  bar.append(document.createElement("div"));
  bar.setAttribute("role", "meter");
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "1");
  return row;
}

function drawSounds(sounds) {
  const list = byId("sounds");
  while (list.children.length > sounds.length) list.lastChild.remove();
  while (list.children.length < sounds.length) list.append(newRow());
  sounds.forEach((sound, place) => {
    const row = list.children[place];
    const bar = row.querySelector(".bar");
    const score = Math.min(Math.max(sound.score, 0), 1);
    write(row.querySelector(".rank"), `${place + 1}`);
    write(row.querySelector(".name"), sound.name);
    write(row.querySelector(".score"), sound.score.toFixed(3));
    bar.setAttribute("aria-label", sound.name);
    bar.setAttribute("aria-valuenow", score.toFixed(3));
    bar.firstChild.style.width = `${100 * score}%`;
  });
  byId("empty").hidden = sounds.length > 0;
}

function draw() {
  const listening = shown.state === "listening";
  topK.max = shown.most;
  if (count === null) {
    count = Math.min(shown.top_k, shown.most);
    topK.value = count;
  }
  write(byId("source"), shown.source);
  write(toggle, listening ? "Stop" : "Start");
  toggle.className = listening ? "stop" : "";
  toggle.disabled = false;
  write(byId("status"), WORDS[shown.state]);
  byId("error").hidden = !shown.error;
  write(byId("error"), shown.error);
  drawSounds(shown.sounds.slice(0, count));
  const some = shown.sounds.length > 0;
  write(byId("seconds"), some ? `${shown.seconds.toFixed(1)} s` : "–");
  write(byId("speed"), some ? shown.windows_per_second.toFixed(1) : "–");
  write(byId("factor"), some ? shown.real_time_factor.toFixed(3) : "–");
}

toggle.addEventListener("click", () => {
  toggle.disabled = true; // until the next state
  const wish = shown.state === "listening" ? "stop" : "start";
  fetch(wish, { method: "POST" }).catch(lost);
});

topK.addEventListener("input", () => {
  const wish = Math.trunc(topK.valueAsNumber);
  if (!(wish >= 1)) return; // nothing yet, while another number is typed
  count = wish;
  if (shown) draw();
});

function lost() {
  toggle.disabled = true;
  write(byId("status"), "No connection: the command has ended, or starts again.");
}

const events = new EventSource("events");
events.onmessage = (event) => {
  shown = JSON.parse(event.data);
  draw();
};
events.onerror = lost;
