"use strict";
// Draws what the embedded document holds. Everything that came from outside is set as text, never as markup.
const report = (() => {
  const doc = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = () => document.documentElement.clientWidth < 620;

  function el(tag, more = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(more)) {
      if (key === "class") node.className = value;
      else if (key === "text") node.textContent = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }

  function shown(value, format) {
    if (value === null || value === undefined) return "";
    if (typeof value === "boolean") return value ? "yes" : "";
    return format ? numbers(format).format(value) : String(value);
  }

  // The few of d3's formats that tables use, such as `+.1%`, `,.0f`, `,d` and `,.5~r` (significant digits).
  function numbers(format) {
    const [, sign, grouped, digits, kind] = /^(\+?)(,?)(?:\.(\d+))?~?([f%dr])$/.exec(format), count = Number(digits || 0);
    const precision = kind === "r" ? { maximumSignificantDigits: count || 6 } : { minimumFractionDigits: count, maximumFractionDigits: count };
    return new Intl.NumberFormat("en-US", { style: kind === "%" ? "percent" : "decimal", useGrouping: Boolean(grouped), signDisplay: sign ? "always" : "auto", ...precision });
  }

  // A select for one choice of the reader; change(value) is called with the value itself, not with its text.
  function choice(title, values, first, change) {
    const select = el("select", { onchange: () => change(values[select.selectedIndex]) });
    for (const value of values) select.append(el("option", { text: String(value) }));
    select.selectedIndex = Math.max(0, values.indexOf(first));
    return el("label", {}, title, select);
  }

  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // The specification in the colours of the theme: `@2`, `@text` and `@background` stand for them.
  function themed(spec) {
    const paint = (value) => {
      if (typeof value === "string") {
        const found = /^@(\d|text|background)$/.exec(value);
        return found ? variable(/\d/.test(found[1]) ? `c${found[1]}` : found[1]) : value;
      }
      if (Array.isArray(value)) return value.map(paint);
      if (value === null || typeof value !== "object") return value;
      return Object.fromEntries(Object.entries(value).map(([key, each]) => (key === "datasets" ? [key, each] : [key, paint(each)])));
    };
    return paint(spec);
  }

  function config() {
    const text = variable("text"), muted = variable("muted");
    return {
      background: variable("background"),
      font: 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif',
      view: { stroke: null },
      axis: {
        labelColor: text, titleColor: muted, gridColor: variable("grid"), domainColor: variable("line"), tickColor: variable("line"),
        labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", titlePadding: 8, tickCount: narrow() ? 4 : 8,
      },
      axisQuantitative: { labelOverlap: true },
      axisY: { titleAngle: 0, titleAlign: "left", titleX: 0, titleY: -12, titleBaseline: "bottom", tickCount: 6 },
      legend: {
        orient: "bottom", columns: narrow() ? 1 : 4, labelColor: text, labelFontSize: 12, labelLimit: narrow() ? 270 : 220,
        symbolSize: 80, symbolOpacity: 1, symbolStrokeWidth: 1.8, columnPadding: 18, rowPadding: 4,
      },
    };
  }

  async function draw(node, spec, rows, description) {
    const whole = {
      $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", autosize: { type: "fit-x", contains: "padding" },
      padding: { left: 2, right: 12, top: 6, bottom: 4 }, data: { name: "rows" }, ...themed(spec), datasets: { rows }, description,
    };
    const found = await vegaEmbed(node, whole, { actions: false, logLevel: 1, renderer: "svg", ast: true, config: config(), tooltip: { theme: dark.matches ? "dark" : "light" } });
    return found.view;
  }

  function table(columns, rows, best) {
    const head = el("tr", {}, ...columns.map((each) => el("th", { scope: "col", class: each.format ? "" : "text", text: each.title })));
    const body = rows.map((row) => el("tr", { class: best && best(row) ? "best" : "" }, ...columns.map((each) => {
      const cell = el("td", { class: each.format ? "" : "text", text: shown(row[each.field], each.format) });
      cell.dataset.field = each.field;
      if (typeof row[each.field] === "number") cell.dataset.value = row[each.field];
      return cell;
    })));
    return el("table", {}, el("thead", {}, head), el("tbody", {}, ...body));
  }

  function save(name, blob) {
    const link = el("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  class Chart {
    constructor(data) {
      this.data = data;
      this.kept = Object.fromEntries(data.filters.map((each) => [each.field, each.first]));
      this.views = [];
      this.drawn = Promise.resolve();
      this.panels = el("div", { class: "panels" });
      this.numbers = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Numbers: ${data.title}` });
      const controls = data.filters.map((each) => choice(each.title, each.values, each.first, (value) => {
        this.kept[each.field] = value;
        this.draw();
      }));
      this.node = el("section", { id: data.id, "aria-labelledby": `${data.id}-title` },
        el("h2", { id: `${data.id}-title`, text: data.title }),
        ...(controls.length ? [el("div", { class: "controls" }, ...controls)] : []));
      if (data.note) {
        this.node.append(el("p", { class: "note", text: data.note }));
        return;
      }
      if (data.panels.length) {
        const actions = ["PNG", "SVG"].map((kind) => el("button", { type: "button", text: `Save ${kind}`, "aria-label": `Save ${data.title} as ${kind}`, onclick: () => this.save(kind) }));
        this.node.append(this.panels, el("p", { class: "caption", text: data.caption }),
          el("div", { class: "actions" }, ...actions), el("details", {}, el("summary", { text: "The numbers" }), this.numbers));
      } else {
        this.node.append(this.numbers, el("p", { class: "caption", text: data.caption }));
      }
    }

    get rows() {
      return this.data.rows.filter((row) => Object.entries(this.kept).every(([field, value]) => row[field] === value));
    }

    // One drawing after the other: a reader may choose faster than Vega draws.
    draw() {
      this.drawn = this.drawn.then(() => this.redraw());
      return this.drawn;
    }

    async redraw() {
      const columns = this.data.columns.filter((each) => !(each.field in this.kept));
      const best = this.data.id === "figures" ? (row) => doc.best[row.load] === row.policy : null;
      this.numbers.replaceChildren(table(columns, this.rows, best));
      this.views.forEach((view) => view.finalize());
      this.views = [];
      const places = this.data.panels.map(() => el("div", { class: "chart" }));
      this.panels.replaceChildren(...this.data.panels.map((panel, index) =>  // all of them first: each takes the width that it will have
        el("div", {}, ...(panel.title ? [el("h3", { text: panel.title })] : []), places[index])));
      for (const [index, panel] of this.data.panels.entries()) {
        const rows = this.rows.filter((row) => Object.entries(panel.where).every(([field, value]) => row[field] === value));
        this.views.push(await draw(places[index], panel.spec, rows, `${this.data.title}. ${panel.title}`));
      }
    }

    // All panels as one picture, below the title of the chart.
    async picture() {
      const parts = await Promise.all(this.views.map((view) => view.toSVG()));
      const svgs = parts.map((text) => new DOMParser().parseFromString(text, "image/svg+xml").documentElement);
      const names = this.data.panels.map((each) => each.title), top = 30, gap = 20, head = names.some(Boolean) ? 22 : 0;
      const sizes = svgs.map((svg) => [Number(svg.getAttribute("width")), Number(svg.getAttribute("height"))]);
      const width = Math.max(sizes.reduce((sum, [each]) => sum + each + gap, -gap), 320);
      const height = top + head + Math.max(...sizes.map(([, each]) => each));
      const make = (tag, more, text) => {
        const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [key, value] of Object.entries(more)) node.setAttribute(key, value);
        if (text !== undefined) node.textContent = text;
        return node;
      };
      const root = make("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
      root.append(make("rect", { width, height, fill: variable("background") }));
      const words = { fill: variable("text"), "font-family": "sans-serif" };
      root.append(make("text", { x: 6, y: 20, "font-size": 15, "font-weight": "bold", ...words }, [this.data.title, ...this.data.filters.map((each) => `${each.title}: ${this.kept[each.field]}`)].join("; ")));
      let x = 0;
      svgs.forEach((svg, index) => {
        if (head) root.append(make("text", { x: x + 6, y: top + 14, "font-size": 13, ...words }, names[index]));
        svg.setAttribute("x", x);
        svg.setAttribute("y", top + head);
        root.append(document.importNode(svg, true));
        x += sizes[index][0] + gap;
      });
      return { text: new XMLSerializer().serializeToString(root), width, height };
    }

    async save(kind) {
      const { text, width, height } = await this.picture();
      const svg = new Blob([text], { type: "image/svg+xml" });
      if (kind === "SVG") return save(`${this.data.id}.svg`, svg);
      const image = new Image();
      image.src = URL.createObjectURL(svg);
      await image.decode();
      const canvas = el("canvas", { width: 2 * width, height: 2 * height });
      canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
      URL.revokeObjectURL(image.src);
      canvas.toBlob((png) => save(`${this.data.id}.png`, png), "image/png");
    }
  }

  const list = (id, texts) => byId(id).append(...texts.map((text) => el("li", { text })));
  list("sure", doc.sure);
  list("words", doc.words);
  byId("warnings").append(...doc.warnings.map((text) => el("p", { class: "warning", text })));
  list("assumptions", doc.assumptions);
  byId("command").textContent = doc.made.command;
  const made = [...Object.entries(doc.made.inputs), ["versions", Object.entries(doc.made.versions).map((pair) => pair.join(" ")).join(", ")]];
  byId("inputs").append(...made.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: String(value) })]));
  byId("save-data").addEventListener("click", () => save("report.json", new Blob([byId("data").textContent], { type: "application/json" })));

  const charts = doc.charts.map((data) => new Chart(data));
  byId("charts").append(...charts.map((chart) => chart.node));
  const contents = [...document.querySelectorAll("main section")].map((section) => [section.id, section.querySelector("h2").textContent]);
  byId("contents").append(...contents.map(([id, text]) => el("li", {}, el("a", { href: `#${id}`, text }))));

  const painters = charts.map((chart) => () => chart.draw());
  const paint = async () => {
    for (const painter of painters) await painter();
    document.documentElement.dataset.ready = "yes";
  };
  dark.addEventListener("change", paint);
  let wasNarrow = narrow();
  addEventListener("resize", () => {
    if (narrow() !== wasNarrow) {
      wasNarrow = narrow();
      paint();
    }
  });
  return { doc, el, byId, choice, shown, draw, variable, painters, paint };
})();
