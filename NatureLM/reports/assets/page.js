"use strict";
(() => {
  const PAGE = 50;
  const data = JSON.parse(document.getElementById("answer-data").textContent);
  const find = (id) => document.getElementById(id);
  const [right, dataset, question, alpha, text] = [
    "by-right", "by-dataset", "by-question", "by-alpha", "by-text",
  ].map(find);
  const list = find("list");
  const more = find("more");
  let matching = [];
  let shown = 0;

  const alphaText = (value) => (value === null ? "-" : String(value));

  // Everything from answers goes through here: as text, never as markup.
  const element = (name, kind, content) => {
    const made = document.createElement(name);
    made.className = kind;
    made.textContent = content;
    return made;
  };

  const fill = (select, values) => {
    for (const value of new Set(values)) {
      const option = element("option", "", value);
      option.value = value;
      select.append(option);
    }
    select.parentElement.hidden = select.options.length < 3;
  };

  const lower = data.texts.map((one) => one.toLowerCase());

  const isRight = ([group, , , , , score]) => !data.groups[group][3] && score === 1;

  const passes = (row) => {
    const [group, id, label, answer] = row;
    const [name, asked, at, isCaption] = data.groups[group];
    if (dataset.value && dataset.value !== name) return false;
    if (question.value && question.value !== asked) return false;
    if (alpha.value && alpha.value !== alphaText(at)) return false;
    if (right.value && (isCaption || isRight(row) !== (right.value === "right"))) return false;
    const wanted = text.value.trim().toLowerCase();
    return !wanted || [id, label, answer].some((place) => lower[place].includes(wanted));
  };

  const item = (row) => {
    const [group, id, label, answer, taken, score] = row;
    const [name, asked, at, isCaption] = data.groups[group];
    const made = document.createElement("li");
    const [kind, verdict] = isCaption ? ["score", `CIDEr ${score}`]
      : isRight(row) ? ["right", "✓ right"] : ["wrong", "✗ wrong"];
    const first = element("div", "", "");
    first.append(
      element("span", `mark ${kind}`, verdict),
      element("span", "about", ` · α ${alphaText(at)} · ${asked} · ${name}`),
    );
    const about = `true: ${data.texts[label]}` +
      (data.texts[taken] === data.texts[answer] ? "" : ` · taken for: ${data.texts[taken]}`) +
      ` · id ${data.texts[id]}`;
    made.append(first, element("div", "answer", data.texts[answer] || "(empty)"),
      element("div", "about", about));
    return made;
  };

  const showMore = () => {
    list.append(...matching.slice(shown, shown + PAGE).map(item));
    shown = Math.min(shown + PAGE, matching.length);
    more.hidden = shown === matching.length;
    const judged = matching.some(([group]) => !data.groups[group][3]);
    const good = judged ? `, ${matching.filter(isRight).length} of them right` : "";
    find("found").textContent = `${matching.length} answers fit${good}; ${shown} are shown.`;
  };

  const update = () => {
    matching = data.rows.filter(passes);
    list.replaceChildren();
    shown = 0;
    showMore();
  };

  fill(dataset, data.groups.map((group) => group[0]));
  fill(question, data.groups.map((group) => group[1]));
  fill(alpha, data.groups.map((group) => alphaText(group[2])));
  find("filters").addEventListener("input", update);
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", showMore);
  update();
})();
