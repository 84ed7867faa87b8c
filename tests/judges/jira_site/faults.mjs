// How a test makes the site fail.

const MODES = ["ok", "delay", "status", "reset", "silence", "reset_after_store", "status_after_store"];

function checked(fault) {
  if (!MODES.includes(fault?.mode)) throw new Error(`unknown fault mode: ${JSON.stringify(fault?.mode)}`);
  return { ...fault, left: fault.times ?? Infinity };
}

function fits({ match = {} }, { method, path, text }) {
  return (
    (match.method ?? method) === method &&
    path.startsWith(match.path_prefix ?? "") &&
    (text ?? "").includes(match.body_contains ?? "")
  );
}

export class Faults {
  #queue = [];
  #flap = null;
  #silent = new Set();

  add(fault) {
    if (fault.mode === "ok") this.clear();
    else this.#queue.push(checked(fault));
  }

  flap({ period_ms: period, modes }) {
    if (!(period > 0) || !Array.isArray(modes) || modes.length === 0) {
      throw new Error("flap wants period_ms and modes");
    }
    this.#flap = { period, modes: modes.map(checked), since: Date.now() };
  }

  clear() {
    this.#queue = [];
    this.#flap = null;
    for (const socket of this.#silent) socket.destroy();
    this.#silent.clear();
  }

  // The fault that this request meets, or null.
  take(request) {
    const queued = this.#queue.find((fault) => fits(fault, request));
    if (!queued) return this.#flapping(request);
    queued.left -= 1;
    this.#queue = this.#queue.filter((fault) => fault.left > 0);
    return queued;
  }

  #flapping(request) {
    if (!this.#flap) return null;
    const { period, modes, since } = this.#flap;
    const now = modes[Math.floor((Date.now() - since) / period) % modes.length];
    return now.mode !== "ok" && fits(now, request) ? now : null;
  }

  silence(socket) {
    this.#silent.add(socket);
    socket.once("close", () => this.#silent.delete(socket));
  }
}

// Protocol: Atlassian "Rate limiting": bursts are counted per endpoint and method.
export class Quota {
  #perSecond = Infinity;
  #reason;
  #retryAfter;
  #admitted = new Map();

  configure({ per_second: perSecond, reason = "jira-burst-based", retry_after: retryAfter = 1 }) {
    this.#perSecond = perSecond ?? Infinity;
    this.#reason = reason;
    this.#retryAfter = retryAfter;
    this.#admitted.clear();
  }

  // The headers of a 429, or null.
  refusal(endpoint, now) {
    if (this.#perSecond === Infinity) return null;
    const recent = (this.#admitted.get(endpoint) ?? []).filter((time) => time > now - 1000);
    this.#admitted.set(endpoint, recent);
    if (recent.length >= this.#perSecond) return this.#headers(now);
    recent.push(now);
    return null;
  }

  #headers(now) {
    return {
      "Retry-After": String(this.#retryAfter),
      "X-RateLimit-Limit": String(this.#perSecond),
      "X-RateLimit-Remaining": "0",
      "X-RateLimit-Reset": new Date(now + this.#retryAfter * 1000).toISOString(),
      "RateLimit-Reason": this.#reason,
    };
  }
}
