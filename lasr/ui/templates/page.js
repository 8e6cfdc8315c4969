"use strict";
// The page of `lasr ui`. What comes from the server is text: it is never read as HTML.
const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (name, text, className) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};
let about = null;

// ---- talking to the server ----

class Problem extends Error {}

async function ask(path, options = {}) {
  let response;
  try { response = await fetch(path, options); }
  catch { throw new Problem("The server does not answer. Is `lasr ui` still running?"); }
  const text = await response.text();
  let answer;
  try { answer = JSON.parse(text); } catch { throw new Problem(text || response.statusText); }
  if (answer.error) throw new Problem(line(answer.error));
  return answer;
}
const post = (path, body) => ask(path, { method: "POST", body: JSON.stringify(body) });
const line = ({ problem, fix }) => (fix ? `${problem}; ${fix}` : problem);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function complain(panel, error) {
  const box = $(".error", panel);
  box.hidden = !error;
  box.textContent = error ? error.message : "";
  if (error && !(error instanceof Problem)) throw error;
}

// Sends a file, waits for the job, and shows how far it is. Returns what the job made.
async function work(panel, path, file, doing) {
  const box = $(".progress", panel), bar = $("progress", box), text = $("p", box);
  if (file.size > about.max_bytes) {
    throw new Problem(`${file.name}: ${megabytes(file.size)} is over the limit of ${megabytes(about.max_bytes)}`);
  }
  box.hidden = false;
  bar.removeAttribute("value");
  text.textContent = "sending…";
  try {
    const { job } = await ask(`${path}&name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
    panel.dataset.job = job;
    for (;;) {
      const state = await ask(`/api/jobs/${job}`);
      if (state.state === "done") return state;
      if (state.state === "stopped") throw new Problem("Stopped.");
      if (state.state === "waiting") {
        text.textContent = `waiting: ${state.ahead} ${state.ahead === 1 ? "job is" : "jobs are"} in line`;
      } else {
        if (state.share > 0) bar.value = state.share;
        const left = state.share > 0.05 ? `, about ${Math.ceil(state.seconds * (1 / state.share - 1))} s left` : "";
        const stopping = panel.dataset.stopping === job ? "stopping after this tile" : doing;
        text.textContent = `${stopping}: ${Math.round(100 * state.share)} %, ${Math.round(state.seconds)} s${left}`;
      }
      await pause(300);
    }
  } finally {
    box.hidden = true;
    delete panel.dataset.job;
    delete panel.dataset.stopping;
  }
}

// ---- tabs ----

const tabs = all("[role=tab]");
function open(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  if (tab.id === "tab-ask" && about && !about.manifest.problem && !$("#ask").dataset.asked) question();
  if (tab.id === "tab-upscale") fit();
}
tabs.forEach((tab, at) => {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(at + step + tabs.length) % tabs.length];
    next.focus();
    open(next);
  });
});
const shown = () => $("[role=tabpanel]:not([hidden])");

// ---- dropping, choosing and pasting a file ----

function takesFiles(panel, use) {
  const drop = $(".drop", panel), input = $("input", drop);
  const take = (file) => {
    if (!file) return;
    $(".chosen", drop).textContent = `${file.name}, ${megabytes(file.size)}`;
    use(file);
  };
  input.addEventListener("change", () => { take(input.files[0]); input.value = ""; });
  panel.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  panel.addEventListener("dragleave", () => drop.classList.remove("over"));
  panel.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    if (!panel.hidden && event.clipboardData.files.length) take(event.clipboardData.files[0]);
  });
}
addEventListener("dragover", (event) => event.preventDefault()); // else the browser would open it
addEventListener("drop", (event) => event.preventDefault());

// ---- upscale ----

const upscaling = $("#upscale"), stage = $(".stage", upscaling), slider = $(".slider", upscaling);
let picture = null, enlarged = null;

takesFiles(upscaling, (file) => {
  picture = file;
  $(".go", upscaling).disabled = !about;
  complain(upscaling, null);
});
$("select[name=weights]", upscaling).addEventListener("change", note);
function note() {
  const label = $("select[name=weights]", upscaling).value;
  $(".about", upscaling).textContent = about.weights.find((each) => each.label === label)?.note ?? "";
}
$("form", upscaling).addEventListener("submit", async (event) => {
  event.preventDefault();
  const go = $(".go", upscaling), stop = $(".stop", upscaling);
  complain(upscaling, null);
  go.disabled = true;
  stop.hidden = false;
  try {
    const weights = encodeURIComponent($("select[name=weights]", upscaling).value);
    enlarged = await work(upscaling, `/api/upscale?weights=${weights}`, picture, "upscaling");
    await compare();
  } catch (error) { complain(upscaling, error); }
  finally { go.disabled = !picture; stop.hidden = true; }
});
$(".stop", upscaling).addEventListener("click", () => {
  const job = upscaling.dataset.job;
  if (!job) return;
  upscaling.dataset.stopping = job;
  post(`/api/jobs/${job}/stop`, {}).catch((error) => complain(upscaling, error));
});

async function compare() {
  const { from, to, bytes, reduced, notes, name, command } = enlarged;
  const images = { before: $(".before", stage), after: $(".after", stage) };
  for (const [which, image] of Object.entries(images)) { image.src = enlarged[which]; }
  await Promise.all(Object.values(images).map((image) => image.decode()));
  $(".sizes", upscaling).textContent = `${from[0]}×${from[1]} → ${to[0]}×${to[1]}, ${megabytes(bytes)}`;
  $(".notes", upscaling).textContent =
    [...notes, reduced ? `shown at ${reduced} pixels; the download has all` : ""].filter(Boolean).join("; ");
  const link = $(".download", upscaling);
  link.href = `${enlarged.download}?as=${encodeURIComponent(name)}`;
  link.download = name;
  $(".command code", upscaling).textContent = command;
  $(".empty", upscaling).hidden = true;
  $(".compare", upscaling).hidden = false;
  split(50);
  fit();
}
function fit() {
  if (!enlarged) return;
  const [width, height] = enlarged.to, view = $(".window", upscaling), zoom = $("[name=zoom]", upscaling).value;
  const most = Math.min(view.parentElement.clientWidth / width, (innerHeight * 0.74) / height);
  const scale = zoom === "fit" ? most : Number(zoom) / devicePixelRatio;
  stage.style.width = `${width * scale}px`;
  stage.style.height = `${height * scale}px`;
  for (const below of [slider, $(".compare figcaption", upscaling)]) {
    below.style.width = zoom === "fit" ? `${width * scale}px` : "100%";
  }
}
function split(share) {
  slider.value = share;
  $(".over", stage).style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  $(".handle", stage).style.left = `${share}%`;
}
slider.addEventListener("input", () => split(Number(slider.value)));
$("[name=zoom]", upscaling).addEventListener("change", fit);
$("[name=pixels]", upscaling).addEventListener("change", (event) => stage.classList.toggle("pixels", event.target.checked));
addEventListener("resize", fit);
const drag = (event) => {
  const box = stage.getBoundingClientRect();
  split(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
};
stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
stage.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });

// ---- ask ----

const asking = $("#ask"), sql = $("textarea", asking), ready = $("select[name=ready]", asking);
const FIRST = `SELECT patch_id, role, image_path, round(distance, 3) AS distance, round(texture, 4) AS texture
FROM patches
WHERE rank < 3
ORDER BY image_path, role, rank LIMIT 48`;

function fillQuestions() {
  const { name, problem, questions } = about.manifest;
  $(".about-manifest", asking).textContent = problem ? "" : `Manifest: ${name}`;
  complain(asking, problem ? new Problem(problem) : null);
  $(".go", asking).disabled = Boolean(problem);
  ready.append(new Option("Best patches of each photograph", ""));
  for (const each of questions) ready.append(new Option(each.title, each.name));
  sql.value = FIRST;
}
ready.addEventListener("change", () => {
  const chosen = about.manifest.questions.find((each) => each.name === ready.value);
  sql.value = chosen ? chosen.sql : FIRST;
  $(".why", asking).textContent = chosen ? `${chosen.why} (lasr query --ask ${chosen.name})` : "";
  if (!about.manifest.problem) question();
});
sql.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form", asking).requestSubmit();
});
$("form", asking).addEventListener("submit", (event) => { event.preventDefault(); question(); });

async function question() {
  asking.dataset.asked = "yes";
  const go = $(".go", asking);
  complain(asking, null);
  go.disabled = true;
  $(".summary", asking).textContent = "asking…";
  try { answer(await post("/api/query", { sql: sql.value })); }
  catch (error) { answer(null); complain(asking, error); }
  finally { go.disabled = false; }
}
function answer(found) {
  const table = $("table", asking), gallery = $(".gallery", asking);
  table.replaceChildren();
  gallery.replaceChildren();
  $(".summary", asking).textContent = "";
  if (!found) return;
  const { columns, numbers, rows, more, patches } = found;
  const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  const parts = [more ? `the first ${rows.length} rows` : count(rows.length, "row")];
  if (patches.length) parts.push(`${more || patches.length < rows.length ? "the first " : ""}${count(patches.length, "patch").replace("patchs", "patches")}`);
  $(".summary", asking).textContent = parts.join(", ");
  for (const patch of patches) {
    const figure = make("figure", undefined, patch.role), image = make("img"), text = make("figcaption");
    image.src = patch.pixels;
    image.alt = `${patch.role === "lr" ? "Far" : "Near"} patch of ${patch.photograph}`;
    text.append(make("b", `${patch.role === "lr" ? "far" : "near"}, ${patch.photograph}`), patch.words.join(", "));
    figure.title = patch.id;
    figure.append(image, text);
    gallery.append(figure);
  }
  const head = table.createTHead().insertRow();
  columns.forEach((name, at) => {
    const cell = make("th", name, numbers[at] ? "num" : "");
    cell.scope = "col";
    head.append(cell);
  });
  const body = table.createTBody();
  for (const row of rows) {
    const tr = body.insertRow();
    row.forEach((value, at) => tr.append(make("td", value === null ? "" : String(value), numbers[at] ? "num" : "")));
  }
}

// ---- far and near ----

const looking = $("#look"), SVG = "http://www.w3.org/2000/svg";
const SLIDERS = ["k", "min_separation", "min_texture", "far_texture"];
let photograph = null, opened = null, wanted = 0;

takesFiles(looking, (file) => { photograph = file; load(); });
$("[name=depth]", looking).addEventListener("change", () => { if (photograph) load(); });
$("form", looking).addEventListener("submit", (event) => event.preventDefault());
async function load() {
  complain(looking, null);
  const mine = photograph;
  try {
    const depth = encodeURIComponent($("[name=depth]", looking).value);
    const found = await work(looking, `/api/photograph?depth=${depth}`, mine, "computing the distance map");
    if (mine !== photograph) return;
    opened = found;
    const images = { picture: $(".picture", looking), distance: $(".distance", looking) };
    for (const [which, image] of Object.entries(images)) image.src = opened[which];
    await Promise.all(Object.values(images).map((image) => image.decode()));
    $(".empty", looking).hidden = true;
    $(".patches", looking).hidden = false;
    await select();
  } catch (error) { complain(looking, error); }
}
function settings() {
  const values = {};
  for (const name of SLIDERS) values[name] = Number($(`[name=${name}]`, looking).value);
  if (values.min_separation < 0) values.min_separation = null;
  return values;
}
function label() {
  const { k, min_separation, min_texture, far_texture } = settings();
  const texts = { k, min_separation: min_separation === null ? "half a patch" : `${min_separation} px`,
    min_texture: min_texture.toFixed(4), far_texture: far_texture.toFixed(4) };
  for (const name of SLIDERS) $(`[name=${name}]`, looking).closest("label").querySelector("output").textContent = texts[name];
  const flags = [`--k ${k}`, min_separation === null ? "" : `--min-separation ${min_separation}`,
    `--min-texture ${min_texture}`, `--far-texture ${far_texture}`].filter(Boolean).join(" ");
  $(".command code", looking).textContent = `lasr build --images ~/photos --depth ${$("[name=depth]", looking).value} ${flags}`;
}
for (const name of SLIDERS) $(`[name=${name}]`, looking).addEventListener("input", () => { label(); select(); });

let busy = false;
async function select() { // one request at a time; the last position of the sliders counts
  wanted += 1;
  if (busy || !opened) return;
  busy = true;
  try {
    for (let answered = 0; answered !== wanted;) {
      answered = wanted;
      const { patches } = await post("/api/patches", { photograph: opened.photograph, ...settings() });
      draw(patches);
    }
    complain(looking, null);
  } catch (error) { complain(looking, error); }
  finally { busy = false; }
}
function draw(patches) {
  label();
  const count = { lr: 0, hr: 0 };
  for (const role of ["lr", "hr"]) $(`.tiles.${role}`, looking).replaceChildren();
  for (const svg of all("svg", looking)) {
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${opened.size[0]} ${opened.size[1]}`);
  }
  patches.forEach((patch, at) => {
    count[patch.role] += 1;
    for (const svg of all("svg", looking)) {
      for (const kind of ["ground", patch.role]) {
        const rect = document.createElementNS(SVG, "rect");
        for (const [name, value] of Object.entries({ x: patch.x, y: patch.y, width: patch.size, height: patch.size })) rect.setAttribute(name, value);
        rect.setAttribute("class", kind);
        if (kind !== "ground") rect.dataset.patch = at;
        svg.append(rect);
      }
    }
    const image = make("img");
    image.src = patch.pixels;
    const where = `distance ${patch.distance}, texture ${patch.texture}`;
    image.alt = `${patch.role === "lr" ? "Far" : "Near"} patch ${patch.rank + 1}, ${where}`;
    image.title = where;
    const light = (on) => all(`[data-patch="${at}"]`, looking).forEach((rect) => rect.classList.toggle("lit", on));
    image.addEventListener("pointerenter", () => light(true));
    image.addEventListener("pointerleave", () => light(false));
    $(`.tiles.${patch.role}`, looking).append(image);
  });
  const k = settings().k, short = count.lr < k || count.hr < k;
  $(".summary", looking).textContent =
    `${count.lr} far and ${count.hr} near patches${short ? `: fewer than ${k}, where the rest is too plain or too close` : ""}`;
}

// ---- start ----

(async () => {
  try { about = await ask("/api/about"); }
  catch (error) { complain(upscaling, error); return; }
  $(".version").textContent = `version ${about.version}`;
  for (const { label } of about.weights) $("select[name=weights]", upscaling).append(new Option(label, label));
  for (const name of about.estimators) $("[name=depth]", looking).append(new Option(name, name));
  note();
  fillQuestions();
  label();
  $(".go", upscaling).disabled = !picture;
  open(tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash) ?? tabs[0]);
})();
