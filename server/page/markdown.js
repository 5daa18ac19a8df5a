// Sets a model's text: a small, forgiving part of Markdown. Text becomes nodes one by one and never passes through an
// HTML parser, so whatever a model writes stays text.
//
// While an answer grows, `render` builds only the blocks that changed. Every search below looks ahead once for each kind of
// mark, so that the time is in proportion to the text, however odd.

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,3}[.)])( +|$)/;
const COLUMNS = /^\|?( *:?-+:? *\|)+ *(:?-+:?)?$/;
const DEEPEST = 6;

const indent = (line) => line.length - line.trimStart().length;
const starts = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((form) => form.test(line));

/** Cuts text into blocks: `{ kind, source, ... }`. */
export function blocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");
  const result = [];
  let at = 0;
  const take = (kind, from, more) => result.push({ kind, source: lines.slice(from, at).join("\n"), ...more });

  while (at < lines.length) {
    const from = at;
    const line = lines[at++];
    let match;
    if (line.trim() === "") continue;
    if ((match = FENCE.exec(line))) {
      const end = (other) => other.trim().startsWith(match[1]) && other.trim().replaceAll(match[1][0], "") === "" && indent(other) < 4;
      while (at < lines.length && !end(lines[at])) at++;
      const code = lines.slice(from + 1, at).join("\n");
      at++;
      take("code", from, { code, language: match[2].trim().split(/\s/)[0] });
    } else if ((match = HEADING.exec(line))) {
      take("heading", from, { level: match[1].length, text: unhash(match[2].trim()) });
    } else if (RULE.test(line)) {
      take("rule", from);
    } else if (QUOTE.test(line)) {
      while (at < lines.length && QUOTE.test(lines[at])) at++;
      take("quote", from, { text: lines.slice(from, at).map((quoted) => quoted.replace(QUOTE, "")).join("\n") });
    } else if ((match = ITEM.exec(line))) {
      const ordered = /\d/.test(match[2]);
      const base = match[1].length;
      const items = [];
      let inner = 0;
      for (at = from; at < lines.length; at++) {
        const item = RULE.test(lines[at]) ? null : ITEM.exec(lines[at]);
        if (item && item[1].length <= base + 1 && (items.length === 0 || item[1].length < inner)) {
          if (/\d/.test(item[2]) !== ordered) break;
          inner = item[0].length;
          items.push([lines[at].slice(inner)]);
        } else if (lines[at].trim() === "") {
          const next = lines[at + 1] ?? "";
          if (!ITEM.test(next) && indent(next) < Math.min(inner, base + 2)) break;
          items.at(-1).push("");
        } else if (indent(lines[at]) > base || !starts(lines[at])) {
          items.at(-1).push(lines[at].slice(Math.min(inner, indent(lines[at]))));
        } else break;
      }
      take("list", from, { ordered, first: Number.parseInt(match[2], 10), items: items.map((item) => item.join("\n")) });
    } else if (line.includes("|") && COLUMNS.test((lines[at] ?? "").trim())) {
      at++;
      while (at < lines.length && lines[at].includes("|")) at++;
      const rows = [line, ...lines.slice(from + 2, at)].map(cells);
      take("table", from, { rows });
    } else {
      while (at < lines.length && lines[at].trim() !== "" && !starts(lines[at])) at++;
      take("paragraph", from, { text: lines.slice(from, at).map((piece) => piece.trim()).join("\n") });
    }
  }
  return result;
}

// A heading may be closed with as many signs as one likes.
function unhash(text) {
  let end = text.length;
  while (text[end - 1] === "#") end--;
  return end === 0 || text[end - 1] === " " ? text.slice(0, end).trimEnd() : text;
}

const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function element(tag, ...children) {
  const result = document.createElement(tag);
  result.append(...children);
  return result;
}

function setText(tag, text) {
  const result = element(tag);
  inline(result, text, 0);
  return result;
}

function build(block, depth) {
  switch (block.kind) {
    case "code": {
      const copy = element("button", "Copy");
      copy.type = "button";
      copy.className = "quiet";
      copy.dataset.do = "copy-code";
      const code = element("pre", element("code", block.code));
      // Wide code scrolls, also by keys.
      code.tabIndex = 0;
      const figure = element("figure", element("figcaption", element("span", block.language || "code"), copy), code);
      figure.className = "code";
      return figure;
    }
    case "heading":
      return setText(`h${Math.min(block.level + 2, 6)}`, block.text);
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", ...nested(block.text, depth));
    case "list": {
      const list = element(block.ordered ? "ol" : "ul", ...block.items.map((item) => element("li", ...nested(item, depth, true))));
      if (block.ordered && block.first !== 1) list.start = block.first;
      return list;
    }
    case "table": {
      const [head, ...body] = block.rows;
      const row = (tag) => (cells) => element("tr", ...cells.map((cell) => setText(tag, cell)));
      const table = element("table", element("thead", row("th")(head)), element("tbody", ...body.map(row("td"))));
      const frame = element("div", table);
      frame.className = "table";
      frame.tabIndex = 0;
      return frame;
    }
    default:
      return setText("p", block.text);
  }
}

// The blocks inside a quote or an item; paragraphs of an item stand without a `p` when there is only one.
function nested(text, depth, bare = false) {
  if (depth >= DEEPEST) return [setText("p", text)];
  const inside = blocks(text);
  const single = inside.filter((block) => block.kind === "paragraph").length === 1;
  return inside.map((block) => (bare && single && block.kind === "paragraph" ? setText("span", block.text) : build(block, depth + 1)));
}

/** Shows `text` in `box`; leaves alone what stands there already. Gives the nodes of the blocks. */
export function render(box, text) {
  const wanted = blocks(text);
  const nodes = [...box.childNodes];
  wanted.forEach((block, i) => {
    const node = nodes[i];
    if (node?.source === block.source) return;
    if (node?.language === block.language && node?.kind === "code" && block.kind === "code") {
      // The same listing has grown: its scroll position and a focused button stay.
      node.querySelector("code").textContent = block.code;
      node.source = block.source;
      return;
    }
    const built = Object.assign(build(block, 0), { kind: block.kind, source: block.source, language: block.language });
    if (node) node.replaceWith(built);
    else box.append(built);
  });
  for (const node of nodes.slice(wanted.length)) node.remove();
  return [...box.childNodes];
}

// Puts a line's text into `parent`: code, bold, italics, links, line breaks.
function inline(parent, text, depth) {
  let plain = "";
  // Marks that are known not to be closed further on.
  const open = new Set();
  const flush = () => {
    if (plain) parent.append(plain);
    plain = "";
  };
  const put = (node) => {
    flush();
    parent.append(node);
  };
  let at = 0;
  while (at < text.length) {
    const here = text[at];
    if (here === "\\" && "*_`#[]<>\\".includes(text[at + 1] ?? " ")) {
      plain += text[at + 1];
      at += 2;
    } else if (here === "\n") {
      put(element("br"));
      at++;
    } else if (here === "`") {
      const ticks = /^`+/.exec(text.slice(at, at + 100))[0];
      const end = open.has(ticks) ? -1 : closing(text, at + ticks.length, ticks);
      if (end < 0) {
        open.add(ticks);
        plain += ticks;
        at += ticks.length;
      } else {
        const code = text.slice(at + ticks.length, end);
        put(element("code", /^ .*[^ ].* $/s.test(code) ? code.slice(1, -1) : code));
        at = end + ticks.length;
      }
    } else if ((here === "*" || here === "_") && depth < DEEPEST) {
      const mark = text[at + 1] === here ? here + here : here;
      const end = open.has(mark) ? -1 : emphasis(text, at, mark);
      if (end < 0) {
        // Whether it may open depends on its neighbours; whether it is closed does not.
        if (end === -1) open.add(mark);
        plain += mark;
        at += mark.length;
      } else {
        const node = element(mark.length === 2 ? "strong" : "em");
        inline(node, text.slice(at + mark.length, end), depth + 1);
        put(node);
        at = end + mark.length;
      }
    } else if (here === "[" || (here === "h" && !/\w/.test(text[at - 1] ?? " "))) {
      const ahead = text.slice(at, at + 2000);
      const match = /^\[([^[\]\n]+)\]\((https?:\/\/[^\s()<>]+)\)/.exec(ahead) ?? /^()(https?:\/\/[^\s<>"'`()[\]*]*[\w/])/.exec(ahead);
      if (match) {
        put(link(match[2], match[1]));
        at += match[0].length;
      } else {
        plain += here;
        at++;
      }
    } else {
      plain += here;
      at++;
    }
  }
  flush();
}

// Where a run of exactly these backticks is next.
function closing(text, from, ticks) {
  for (let at = text.indexOf(ticks, from); at >= 0; ) {
    let end = at + ticks.length;
    while (text[end] === "`") end++;
    if (end - at === ticks.length) return at;
    at = text.indexOf(ticks, end);
  }
  return -1;
}

// Where the mark at `at` is closed: -1 where no such mark closes further on, -2 where this one cannot open.
function emphasis(text, at, mark) {
  const word = (char) => char !== undefined && /[\p{L}\p{N}]/u.test(char);
  const space = (char) => char === undefined || /\s/.test(char);
  const from = at + mark.length;
  if (space(text[from]) || (mark[0] === "_" && word(text[at - 1]))) return -2;
  for (let end = text.indexOf(mark, from + 1); end >= 0; ) {
    // Of three in a row the last two close what is bold.
    while (mark.length === 2 && text[end + 2] === mark[0]) end++;
    const after = end + mark.length;
    const longer = mark.length === 1 && text[after] === mark;
    if (!longer && !space(text[end - 1]) && !(mark[0] === "_" && word(text[after]))) return end;
    end = text.indexOf(mark, longer ? after + 1 : after);
  }
  return -1;
}

function link(address, text) {
  const result = element("a", text || address);
  result.href = address;
  result.title = address;
  result.target = "_blank";
  result.rel = "noopener noreferrer";
  return result;
}
