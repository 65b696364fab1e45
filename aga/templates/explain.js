"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const report = document.getElementById("report");
  const grid = document.getElementById("grid");
  const status = document.getElementById("status");
  const release = document.getElementById("release");
  const words = [];  // by number; a word of one number is one element
  for (const element of report.querySelectorAll(".word")) words[Number(element.dataset.word)] = element;
  const patches = [...grid.querySelectorAll(".patch")];
  const OPACITY = 0.75;
  let pinned = null;  // {kind, index}: stays lit until it is released
  let cursor = 0;     // the patch that the arrow keys are at
  let stop = 0;       // the word that the tab key reaches

  const number = (value) => data.shares ? `${(100 * value).toPrecision(2)} %` : value.toPrecision(2);
  const place = (patch) => `row ${Math.floor(patch / data.columns) + 1}, column ${patch % data.columns + 1}`;
  const pixels = (patch) => {
    const box = data.boxes[patch];
    return box ? `x ${box[0]} to ${box[2]}, y ${box[1]} to ${box[3]} of the original image`
      : "on the padding around the original image";
  };

  function clear() {
    for (const patch of patches) {
      patch.style.fillOpacity = 0;
      patch.classList.remove("lit", "here");
    }
    for (const word of words) if (word) {
      word.style.removeProperty("--weight");
      word.classList.remove("lit", "here");
    }
    status.textContent = status.dataset.hint;
  }

  function light(elements, weights, paint) {
    const most = Math.max(...weights);
    weights.forEach((weight, index) => {
      if (weight > 0 && elements[index]) {
        elements[index].classList.add("lit");
        paint(elements[index], weight / most);
      }
    });
    return weights.filter((weight) => weight > 0).length;
  }

  function showWord(word) {
    const weights = data.wordToPatch[word];
    const count = light(patches, weights, (patch, share) => { patch.style.fillOpacity = OPACITY * share; });
    words[word].classList.add("here");
    const best = weights.indexOf(Math.max(...weights));
    const limit = data.wordThresholds ? ` (threshold ${data.wordThresholds[word]})` : "";
    status.textContent = count
      ? `“${data.words[word]}” chose ${count} of ${patches.length} patches${limit}; the strongest is in `
        + `${place(best)}, with ${number(weights[best])}: ${pixels(best)}.`
      : `“${data.words[word]}” chose no patch.`;
  }

  function showPatch(patch) {
    const weights = data.patchToWord[patch];
    const count = light(words, weights, (word, share) => { word.style.setProperty("--weight", share.toFixed(3)); });
    patches[patch].classList.add("here");
    const limit = data.patchThresholds ? ` (threshold ${data.patchThresholds[patch]})` : "";
    const best = weights.map((weight, word) => [weight, word]).filter(([weight]) => weight > 0)
      .sort((a, b) => b[0] - a[0]).slice(0, 5).map(([weight, word]) => `${data.words[word]} ${number(weight)}`);
    status.textContent = `The patch in ${place(patch)} (${pixels(patch)}) chose ${count} of `
      + `${weights.length} words${limit}${count ? `, most of all: ${best.join(", ")}` : ""}.`;
  }

  function draw(kind, index) {
    clear();
    if (kind === "word") showWord(index); else showPatch(index);
  }
  const show = (kind, index) => { if (!pinned) draw(kind, index); };
  const leave = () => { if (!pinned) clear(); };

  function pin(kind, index) {
    const same = pinned && pinned.kind === kind && pinned.index === index;
    pinned = same ? null : { kind, index };
    words.forEach((word, i) => word && word.setAttribute("aria-pressed",
      String(Boolean(pinned && pinned.kind === "word" && pinned.index === i))));
    document.body.classList.toggle("pinned", Boolean(pinned));
    release.hidden = !pinned;
    if (pinned) draw(kind, index); else if (same) leave();
  }
  const unpin = () => { if (pinned) pin(pinned.kind, pinned.index); };

  function goTo(word) {
    words[stop].tabIndex = -1;
    stop = word;
    words[stop].tabIndex = 0;
    words[stop].focus();
  }
  function neighbour(word, step) {
    for (let next = word + step; next >= 0 && next < words.length; next += step) if (words[next]) return next;
    return word;
  }

  const wordAt = (event) => event.target.closest(".word");
  report.addEventListener("pointerover", (event) => {
    const word = wordAt(event);
    if (word) show("word", Number(word.dataset.word)); else leave();
  });
  report.addEventListener("pointerleave", leave);
  report.addEventListener("focusin", (event) => {
    const word = wordAt(event);
    if (word) show("word", Number(word.dataset.word));
  });
  report.addEventListener("focusout", leave);
  report.addEventListener("click", (event) => {
    const word = wordAt(event);
    if (word) pin("word", Number(word.dataset.word));
  });
  report.addEventListener("keydown", (event) => {
    const word = wordAt(event);
    if (!word) return;
    const at = Number(word.dataset.word);
    const moves = { ArrowRight: neighbour(at, 1), ArrowDown: neighbour(at, 1), ArrowLeft: neighbour(at, -1),
      ArrowUp: neighbour(at, -1), Home: neighbour(-1, 1), End: neighbour(words.length, -1) };
    if (event.key in moves) goTo(moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") pin("word", at);
    else return;
    event.preventDefault();
  });

  const patchAt = (event) => patches.indexOf(event.target.closest(".patch"));
  grid.addEventListener("pointerover", (event) => {
    if (patchAt(event) >= 0) show("patch", cursor = patchAt(event));
  });
  grid.addEventListener("pointerleave", leave);
  grid.addEventListener("focus", () => { if (grid.matches(":focus-visible")) show("patch", cursor); });
  grid.addEventListener("blur", leave);
  grid.addEventListener("click", (event) => { if (patchAt(event) >= 0) pin("patch", cursor = patchAt(event)); });
  grid.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: data.columns, ArrowUp: -data.columns };
    if (event.key in steps) {
      const column = cursor % data.columns + (event.key === "ArrowRight") - (event.key === "ArrowLeft");
      const next = cursor + steps[event.key];
      if (column >= 0 && column < data.columns && next >= 0 && next < patches.length) cursor = next;
      show("patch", cursor);
    } else if (event.key === "Enter" || event.key === " ") pin("patch", cursor);
    else return;
    event.preventDefault();
  });

  document.addEventListener("keydown", (event) => { if (event.key === "Escape") unpin(); });
  release.addEventListener("click", unpin);
  const first = neighbour(-1, 1);
  if (words[first]) { stop = first; words[first].tabIndex = 0; }
  clear();
})();
