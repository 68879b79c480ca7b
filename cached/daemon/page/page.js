"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const body = document.body, rows = byId("rows"), live = byId("live"), find = byId("find"), query = byId("query");
  const SILENT_MS = 45000, RETRY_MS = 5000;
  let position = body.dataset.position, source = null, heard = 0, ahead = 0;

  function setClock(now) { ahead = now * 1000 - Date.now(); }

  function formatAge(since) {
    const whole = Math.max(0, Math.floor((Date.now() + ahead - Date.parse(since)) / 1000));
    const steps = [[60, 1, "s"], [3600, 60, "m"], [86400, 3600, "h"], [Infinity, 86400, "d"]];
    const [, unit, name] = steps.find(([limit]) => whole < limit);
    return `${Math.floor(whole / unit)}${name}`;
  }

  function tellAges(inside) {
    for (const each of inside.querySelectorAll("time[datetime]")) {
      const age = formatAge(each.dateTime);
      if (each.textContent !== age) each.textContent = age;
      if (!each.title) each.title = each.dateTime;
    }
  }

  function put(element, html) {
    const open = new Set([...element.querySelectorAll("details[open]")].map((each) => each.dataset.key));
    element.innerHTML = html;
    for (const each of element.querySelectorAll("details")) each.open = open.has(each.dataset.key);
    tellAges(element);
  }

  function filter() {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows.children) {
      const text = words.length ? row.textContent.toLowerCase() : "";
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    byId("shown").textContent = words.length ? `${shown} of ${rows.children.length} shown` : "";
  }

  function apply(change) {
    setClock(change.now);
    document.title = change.title;
    for (const [id, html] of Object.entries(change.sections)) if (byId(id)) put(byId(id), html);
    if (change.order) {
      const known = new Map([...rows.children].map((row) => [row.id, row]));
      change.order.forEach((key, at) => {
        let row = known.get(key);
        if (!row) { row = document.createElement("tr"); row.id = key; row.setAttribute("role", "row"); }
        known.delete(key);
        if (rows.children[at] !== row) rows.insertBefore(row, rows.children[at] || null);
      });
      for (const row of known.values()) row.remove();
    }
    for (const [id, html] of Object.entries(change.rows)) if (byId(id)) put(byId(id), html);
    filter();
  }

  function tell(state, text) {
    if (live.className !== `dot ${state}`) { live.className = `dot ${state}`; live.textContent = text; }
  }

  function listen() {
    if (source) source.close();
    heard = Date.now();
    source = new EventSource(`page/events?after=${encodeURIComponent(position)}`);
    source.onopen = () => { heard = Date.now(); tell("live", "Live: changes appear here by themselves."); };
    source.onmessage = (event) => { heard = Date.now(); position = event.lastEventId; apply(JSON.parse(event.data)); };
    source.addEventListener("beat", (event) => { heard = Date.now(); setClock(Number(event.data)); });
    source.addEventListener("reload", () => { source.close(); location.reload(); });
    source.onerror = () => {
      const at = new Date(Date.now() + ahead).toISOString().slice(11, 19);
      tell("lost", `Not connected since ${at} UTC. Trying again; what stands here may be old.`);
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_MS);
    };
  }

  setClock(Number(body.dataset.now));
  find.hidden = false;
  query.addEventListener("input", filter);
  tellAges(document);
  setInterval(() => {
    tellAges(document);
    if (source.readyState !== EventSource.CLOSED && Date.now() - heard > SILENT_MS) listen();
  }, 1000);
  listen();
})();
