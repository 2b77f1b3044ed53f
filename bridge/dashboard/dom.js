// Elements made and kept up to date. Text goes in as text, never as markup.

/** An element; `props` that are no property of it become attributes, and null children are left out. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.startsWith("aria")) node[name] = value;
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Set a text where it differs: what stays the same is neither painted nor read out again. */
export function text(node, value) {
  const said = String(value);
  if (node.textContent !== said) node.textContent = said;
}

/** Set an attribute where it differs. */
export function attr(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * Make the children of `parent` those of `items`, in order. Elements stay the same as long as their key does, and
 * those that stay are not moved, so that focus and selection survive; focus on one that goes moves to its neighbour.
 */
export function keyed(parent, items, keyOf, create, update) {
  const wanted = new Set(items.map((item) => String(keyOf(item))));
  const kept = new Map();
  for (const node of [...parent.children]) {
    if (wanted.has(node.dataset.key)) kept.set(node.dataset.key, node);
    else {
      if (node.contains(document.activeElement)) neighbour(node)?.focus();
      node.remove();
    }
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    const node = kept.get(key) ?? create(item);
    node.dataset.key = key;
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
}

function neighbour(node) {
  const next = node.nextElementSibling ?? node.previousElementSibling;
  return next?.querySelector("button, a") ?? node.closest("section");
}

/** A table row of cells that `cells` fills; each column is a class name, so that narrow pages can leave it out. */
export function row(columns, first = "td") {
  return el("tr", {}, columns.map((name, index) =>
    el(index === 0 ? first : "td", index === 0 && first === "th" ? { className: name, scope: "row" } : { className: name })));
}

export function cells(tr, values) {
  values.forEach((value, index) => text(tr.children[index], value));
}

/** A bar of how much of a limit is used. It is a meter to a screen reader, and says its own figures. */
export function bar(label) {
  const filled = el("span", { className: "filled" });
  const name = el("span", { className: "name" }, label);
  const figures = el("span", { className: "figures" });
  const track = el("span", { className: "track", role: "meter", "aria-label": label, "aria-valuemin": 0 }, filled);
  return el("div", { className: "bar" }, name, figures, track);
}

export function fill(node, used, limit, figures) {
  const [, said, track] = node.children;
  const share = limit > 0 ? used / limit : 0;
  text(said, figures);
  attr(track, "aria-valuemax", limit);
  attr(track, "aria-valuenow", Math.min(used, limit));
  attr(track, "aria-valuetext", figures);
  track.firstElementChild.style.width = `${Math.min(100, share * 100)}%`;
  attr(node, "data-level", share >= 1 ? "full" : share >= 0.8 ? "high" : "fine");
}

/** Say it once to a screen reader. */
export function announce(message) {
  const said = byId("announcer");
  said.append(el("p", {}, message));
  while (said.children.length > 5) said.firstElementChild.remove();
}
