(() => {
  "use strict";
  const panels = document.querySelector(".panels");
  if (!panels) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const cross = panels.querySelector(".cross");
  const tip = document.querySelector(".tip");
  const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const two = (value) => String(value).padStart(2, "0");

  function clock(atS) {
    if (data.origin !== null) return new Date(1000 * (data.origin + atS)).toISOString().slice(0, 19).replace("T", " ");
    const whole = Math.round(atS);
    return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
  }

  function nearest(atS) {
    let low = 0, high = data.at.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (data.at[middle] < atS) low = middle + 1; else high = middle;
    }
    return low > 0 && atS - data.at[low - 1] < data.at[low] - atS ? low - 1 : low;
  }

  function element(kind, text, parent) {
    const made = document.createElement(kind);
    made.textContent = text;
    parent.append(made);
    return made;
  }

  function row(name, value) {
    const line = element("div", "", tip);
    element("span", name, line);
    element("strong", value, line);
  }

  function show(event) {
    const box = panels.getBoundingClientRect();
    const scale = box.width / data.width;
    const share = ((event.clientX - box.left) / scale - data.left) / data.plot;
    if (share < 0 || share > 1 || !data.at.length) return hide();
    const index = nearest(share * data.end), atS = data.at[index];
    cross.style.left = `${(data.left + data.plot * atS / data.end) * scale}px`;
    cross.hidden = tip.hidden = false;
    tip.replaceChildren();
    element("b", clock(atS) + (atS <= data.unjudged ? " (not judged)" : ""), tip);
    for (const one of data.rows) {
      const value = one.values[index];
      row(one.name, value === null ? "no value" : `${number.format(value)} ${one.unit}`.trim());
    }
    for (const one of data.strips) row(one.name, one.names[one.values[index]]);
    const near = 6 / scale / data.plot * data.end;
    for (const one of data.events.filter((one) => Math.abs(one.at - share * data.end) < near).slice(0, 3)) {
      element("p", one.text, tip);
    }
    const right = event.clientX + 18 + tip.offsetWidth < window.innerWidth;
    tip.style.left = `${right ? event.clientX + 18 : Math.max(4, event.clientX - 18 - tip.offsetWidth)}px`;
    tip.style.top = `${Math.max(8, Math.min(event.clientY - 40, window.innerHeight - tip.offsetHeight - 8))}px`;
  }

  function hide() { cross.hidden = tip.hidden = true; }

  panels.addEventListener("pointermove", show);
  panels.addEventListener("pointerleave", hide);
})();

(() => {
  "use strict";
  const planes = document.querySelector(".planes");
  if (!planes) return;
  const buttons = [...document.querySelectorAll(".rules button")];
  const pressed = () => buttons.filter((one) => one.getAttribute("aria-pressed") === "true");

  function show(names) {
    planes.classList.toggle("dimmed", names.size > 0);
    for (const one of planes.querySelectorAll(".rule")) one.classList.toggle("on", names.has(one.dataset.rule));
  }

  const held = () => new Set(pressed().map((one) => one.dataset.rule));
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      show(held());
    });
    button.addEventListener("pointerenter", () => show(held().add(button.dataset.rule)));
    button.addEventListener("pointerleave", () => show(held()));
  }
})();
