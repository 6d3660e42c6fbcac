// Keeps a page up to date. Everything works without it.
(() => {
  "use strict";
  const SLOW_REFRESH = 60000;
  const REFRESH_WITHOUT_EVENTS = 15000;
  const AFTER_CHANGES = 3000;

  const main = document.getElementById("main");
  const live = document.getElementById("live");
  // A page that asks something stays as it is.
  if (!main || !live || main.querySelector('form[method="post"]')) return;

  let events = null;
  let connected = false;
  let timer = 0;
  let due = Infinity;
  let refreshing = false;

  const say = (text) => {
    live.textContent = text;
    live.hidden = false;
  };

  // What a person types, selects or has opened is not taken away.
  const busy = () => {
    const active = document.activeElement;
    const typing = active && main.contains(active) && active.matches("input, select, textarea");
    return typing || !document.getSelection().isCollapsed || main.querySelector("details[open]");
  };

  const replace = (fresh) => {
    const active = document.activeElement;
    const href = active && main.contains(active) ? active.getAttribute("href") : null;
    main.replaceChildren(...fresh.getElementById("main").childNodes);
    const status = document.querySelector("header .status");
    const newStatus = fresh.querySelector("header .status");
    if (status && newStatus && !status.contains(active)) status.replaceWith(newStatus);
    if (href) {
      const links = [...main.querySelectorAll("a[href]")];
      const same = links.find((link) => link.getAttribute("href") === href);
      if (same) same.focus({ preventScroll: true });
    }
  };

  const refresh = async () => {
    if (refreshing || document.hidden) return;
    if (busy()) {
      refreshIn(AFTER_CHANGES);
      return;
    }
    refreshing = true;
    try {
      const response = await fetch(location.href, { headers: { Accept: "text/html" } });
      const text = await response.text();
      const fresh = new DOMParser().parseFromString(text, "text/html");
      if (response.ok && fresh.getElementById("main") && !busy()) replace(fresh);
    } catch {
      say("The daemon does not respond.");
    } finally {
      refreshing = false;
      refreshIn(connected ? SLOW_REFRESH : REFRESH_WITHOUT_EVENTS);
    }
  };

  // The earliest of what was asked for.
  const refreshIn = (delay) => {
    const now = Date.now();
    if (due <= now + delay && due > now) return;
    clearTimeout(timer);
    due = now + delay;
    timer = setTimeout(() => {
      due = Infinity;
      refresh();
    }, delay);
  };

  // Many browsers do not come back at the same moment.
  const soon = () => refreshIn(100 + Math.random() * 500);

  const number = (value) => value.toLocaleString("en");

  const progress = ({ job, done, total, reading, what }) => {
    for (const element of main.querySelectorAll(".progress")) {
      if (element.dataset.job !== job) continue;
      const bar = element.querySelector("progress");
      if (total) {
        bar.max = total;
        bar.value = done;
      } else {
        bar.removeAttribute("value");
      }
      const of = total ? ` of ${number(total)}` : "";
      const unit = reading ? "" : ` ${element.dataset.unit}`;
      const verb = reading ? (what ? `reading ${what}: ` : "reading: ") : "";
      element.querySelector("small").textContent = `${verb}${number(done)}${of}${unit}`;
    }
  };

  const listen = () => {
    if (events || document.hidden || !window.EventSource) return;
    const job = main.dataset.job;
    events = new EventSource("/api/v1/events" + (job ? `?job=${encodeURIComponent(job)}` : ""));
    events.onopen = () => {
      connected = true;
      say("Updates by itself.");
    };
    events.onerror = () => {
      connected = false;
      say("Not connected: updates slowly.");
      if (events && events.readyState === EventSource.CLOSED) events = null;
      refreshIn(REFRESH_WITHOUT_EVENTS);
    };
    for (const name of ["started", "planned", "ended", "reload"]) {
      events.addEventListener(name, soon);
    }
    events.addEventListener("change", () => refreshIn(AFTER_CHANGES));
    events.addEventListener("progress", (message) => progress(JSON.parse(message.data)));
  };

  // A browser opens six connections to a server: a hidden page must not hold one.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      if (events) events.close();
      events = null;
      connected = false;
    } else {
      listen();
      soon();
    }
  });

  listen();
  refreshIn(events ? SLOW_REFRESH : REFRESH_WITHOUT_EVENTS);
})();
