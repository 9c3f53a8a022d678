"use strict";
// Steps through decisions that Python made and stored: nothing is decided here.
(() => {
  const { doc, el, byId, choice, shown, draw, variable, painters, paint } = report;
  const data = doc.explorer;
  const state = { drafter: data.drafters[0].name, domain: "", load: data.first.load, policy: data.first.policy, at: 0 };
  const unique = (values) => [...new Set(values)];
  let found, ranks, cells, view;

  const domains = () => unique(data.cases.filter((each) => each.drafter === state.drafter).map((each) => each.domain));
  const decision = () => found.policies.find((each) => each.name === state.policy);
  const verifies = (policy, token) => !policy.refused && token % found.gamma < policy.lengths[Math.floor(token / found.gamma)];
  const tokens = () => found.order.length;

  // The last token of the order that the policy verifies: up to there it has something to decide.
  function last(policy) {
    let rank = tokens();
    while (rank > 0 && !verifies(policy, found.order[rank - 1])) rank -= 1;
    return rank;
  }

  function controls() {
    if (!domains().includes(state.domain)) state.domain = domains()[0];
    const change = (field) => (value) => {
      state[field] = value;
      controls();
      byId("explorer-controls").querySelector(`[data-field=${field}] select`).focus();
      open();
      theta();
    };
    const choices = [["drafter", "Drafter", data.drafters.map((each) => each.name)], ["domain", "Text", domains()],
      ["load", doc.unit[0].toUpperCase() + doc.unit.slice(1), data.loads], ["policy", "Policy", doc.explorer.cases[0].policies.map((each) => each.name)]];
    byId("explorer-controls").replaceChildren(...choices.map(([field, title, values]) => {
      const label = choice(title, values, state[field], change(field));
      label.dataset.field = field;
      return label;
    }));
  }

  function open() {
    found = data.cases.find((each) => each.drafter === state.drafter && each.domain === state.domain && each.load === state.load);
    ranks = new Map(found.order.map((token, index) => [token, index + 1]));
    byId("cursor").max = tokens();
    blocks();
    move(last(decision()));
  }

  function blocks() {
    const positions = [...Array(found.gamma).keys()];
    const head = el("tr", {}, el("th", { scope: "col", text: "req." }), ...positions.map((each) => el("th", { scope: "col", text: each + 1 })));
    cells = [];
    const rows = found.depth.map((_, request) => el("tr", {}, el("th", { scope: "row", text: request + 1 }), ...positions.map((position) => {
      const token = request * found.gamma + position, cell = el("td");
      cell.dataset.token = token;
      cells[token] = cell;
      return cell;
    })));
    byId("blocks").replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
  }

  function move(to) {
    state.at = Math.min(Math.max(to, 0), tokens());
    byId("cursor").value = state.at;
    byId("cursor").setAttribute("aria-valuetext", `${state.at} of ${tokens()} tokens`);
    const policy = decision(), over = state.at >= last(policy), now = state.at ? found.order[state.at - 1] : -1;
    cells.forEach((cell, token) => {
      const passed = ranks.get(token) <= state.at, verified = passed && verifies(policy, token);
      const sure = Math.round(100 * found.confidence[token]);
      const accepted = token % found.gamma < found.depth[Math.floor(token / found.gamma)];
      cell.className = `${verified ? "admitted" : passed ? "passed" : ""}${token === now ? " now" : ""}`;
      cell.textContent = verified && over ? `${sure}${accepted ? "\u2713" : "\u2717"}` : sure;
    });
    if (now >= 0) reveal(cells[now]);
    byId("step-text").textContent = told(policy, now);
    verdicts(now);
    if (view) view.data("cursor", [{ at: state.at }]).runAsync();
  }

  // Scrolls the box of blocks alone, never the page.
  function reveal(cell) {
    const box = byId("blocks"), row = cell.parentElement, top = row.offsetTop - box.querySelector("thead").offsetHeight;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = row.offsetTop + row.offsetHeight - box.clientHeight;
  }

  function told(policy, now) {
    const head = data.drafters.find((each) => each.name === state.drafter);
    byId("explorer-rule").textContent = [`${found.requests} requests decode together, ${found.gamma} draft tokens each.`,
      head.confidence ? "" : `${head.name} has no confidence head: every block reports the mean acceptance of its kind of text.`,
      policy.refused ? `${policy.name} cannot run here: ${policy.refused}.` : `${policy.name}: ${policy.rule}`].filter(Boolean).join(" ");
    const price = found.prices[policy.refused ? 0 : policy.prices];
    if (!price) return "";
    const here = `tau ${shown(found.tau[state.at], ",.2f")} tokens, T ${shown(price.step_ms[state.at], ",.3f")} ms, Theta ${shown(price.theta[state.at], ",.0f")} tokens/s`;
    if (now < 0) return `Before the first token, the ${found.requests} anchors alone: ${here}.`;
    const before = price.theta[state.at - 1], change = price.theta[state.at] / before - 1;
    const where = `Token ${state.at} of ${tokens()} in the order: request ${Math.floor(now / found.gamma) + 1}, position ${(now % found.gamma) + 1}.`;
    const sure = `Confidence ${shown(found.confidence[now], ".1%")}, survival ${shown(found.survival[now], ".1%")}.`;
    return `${where} ${sure} With it: ${here} (${shown(change, "+.2%")}). ${policy.name}: ${why(policy, now)}.`;
  }

  function why(policy, token) {
    if (policy.refused) return policy.refused;
    const rank = ranks.get(token), span = policy.spans.find(([first, final]) => first <= rank && rank <= final);
    const said = verifies(policy, token) ? "verified" : "not verified";
    const because = span ? span[2] : verifies(policy, token) ? policy.yes : policy.no;
    return because ? `${said}, ${because}` : said;
  }

  function verdicts(now) {
    const columns = [["policy", "text"], ["this token", "text"], ["verified", ""], ["given", ""], ["wasted", ""], ["step, ms", ""], ["expected tokens/s", ""]];
    const table = byId("verdicts");
    table.tHead.replaceChildren(el("tr", {}, ...columns.map(([text, kind]) => el("th", { scope: "col", class: kind, text }))));
    table.tBodies[0].replaceChildren(...found.policies.map((policy) => {
      const name = el("th", { scope: "row", class: "text", text: policy.name });
      if (policy.refused) return el("tr", {}, name, el("td", { class: "text", colspan: 6, text: `cannot run here: ${policy.refused}` }));
      const takes = now >= 0 && verifies(policy, now);
      const token = el("td", { class: `text ${now < 0 ? "" : takes ? "verdict-yes" : "verdict-no"}`, text: now < 0 ? "" : takes ? "verified" : "not verified" });
      const numbers = [[policy.verified, ",d"], [policy.committed, ",d"], [policy.wasted, ",d"], [policy.step_ms, ",.2f"], [policy.expected, ",.0f"]];
      const row = el("tr", { class: policy.name === state.policy ? "best" : "" }, name, token, ...numbers.map(([value, format]) => {
        const cell = el("td", { text: shown(value, format) });
        cell.dataset.value = value;
        return cell;
      }));
      row.dataset.policy = policy.name;
      return row;
    }));
  }

  // Theta along the order, what the rule looks at, every policy's end, and the cursor.
  async function theta() {
    const policy = decision(), price = found.prices[policy.refused ? 0 : policy.prices];
    if (view) view.finalize();
    view = null;
    if (!price) return byId("theta-chart").replaceChildren();
    const rows = price.theta.map((value, at) => ({ at, theta: value, kind: "this step" }));
    const sees = (policy.sees || []).map((value, at) => ({ at, theta: value, kind: policy.sees_what }));
    const ends = found.policies.filter((each) => !each.refused).map((each) => ({ policy: each.name, at: each.verified, theta: each.expected }));
    const names = ends.map((each) => each.policy), marks = names.map((name) => `@${doc.policies.indexOf(name) % 8}`);
    const shapes = names.map((name) => ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left"][doc.policies.indexOf(name) % 8]);
    const x = { field: "at", type: "quantitative", title: "draft tokens verified, in the admission order", scale: { domain: [0, Math.max(tokens(), 1)], nice: false } };
    const y = { field: "theta", type: "quantitative", title: "Theta, expected tokens/s", scale: { zero: false } };
    const spec = {
      height: 280,
      layer: [
        { data: { name: "cursor" }, mark: { type: "rule", color: variable("now"), strokeWidth: 2, aria: false }, encoding: { x: { field: "at", type: "quantitative" } } },
        { mark: { type: "line", color: "@text", strokeWidth: 1.5, aria: false }, encoding: { x, y } },
        { data: { values: sees }, mark: { type: "line", color: "@text", strokeWidth: 1.5, strokeDash: [5, 4], opacity: 0.75, aria: false }, encoding: { x, y } },
        { data: { values: ends }, mark: { type: "point", filled: true, size: 110, opacity: 1, stroke: "@background", strokeWidth: 1 },
          encoding: { x, y, color: { field: "policy", type: "nominal", title: null, scale: { domain: names, range: marks } },
            shape: { field: "policy", type: "nominal", title: null, scale: { domain: names, range: shapes } },
            tooltip: [{ field: "policy" }, { field: "at", type: "quantitative", title: "verified" }, { field: "theta", type: "quantitative", title: "expected tokens/s", format: ",.0f" }] } },
      ],
    };
    view = await draw(byId("theta-chart"), spec, rows, "Theta along the admission order");
    await view.data("cursor", [{ at: state.at }]).runAsync();
  }

  const steps = { first: () => 0, back: () => state.at - 1, next: () => state.at + 1, decided: () => last(decision()) };
  document.querySelectorAll("[data-step]").forEach((button) => button.addEventListener("click", () => move(steps[button.dataset.step]())));
  byId("cursor").addEventListener("input", (event) => move(Number(event.target.value)));
  byId("cursor").addEventListener("keydown", (event) => {
    const by = { PageUp: 10, PageDown: -10 }[event.key];
    if (!by) return;
    event.preventDefault();
    move(state.at + by);
  });
  byId("blocks").addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    if (cell) move(ranks.get(Number(cell.dataset.token)));
  });

  painters.push(theta);
  controls();
  open();
  paint();
})();
