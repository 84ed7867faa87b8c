// What the site knows. Protocol: Jira Software REST: an entity is known by its
// own ids alone, within one app on one site. Here they are joined by "/", which
// no id can contain.

export const FAMILIES = ["devinfo", "builds", "deployments", "featureflags", "remotelinks"];

export class Store {
  #families = new Map(FAMILIES.map((family) => [family, new Map()]));
  #deleted = [];

  get(family, key) {
    return this.#families.get(family).get(key);
  }

  entries(family) {
    return [...this.#families.get(family)];
  }

  // Protocol: Jira Software REST, update sequence: only a strictly larger number
  // replaces, and then wholesale; out-of-order is silent.
  put(family, key, { seq, data, properties }) {
    const entities = this.#families.get(family);
    const known = entities.get(key);
    if (known && seq <= known.seq) {
      known.ignored += 1;
      return;
    }
    const history = known?.history ?? [];
    history.push(seq);
    entities.set(key, { seq, data, properties, ignored: known?.ignored ?? 0, history });
  }

  // Protocol: Jira Software REST: a delete with a number spares what is newer.
  remove(family, key, upTo = Infinity) {
    const entity = this.get(family, key);
    if (!entity || entity.seq > upTo) return;
    this.#families.get(family).delete(key);
    this.#deleted.push({ family, key, seq: entity.seq, history: entity.history });
  }

  removeRepository(id, upTo) {
    for (const [key] of this.entries("devinfo")) {
      if (key === id || key.startsWith(`${id}/`)) this.remove("devinfo", key, upTo);
    }
  }

  removeByProperties(family, pairs) {
    for (const key of this.keysByProperties(family, pairs)) this.remove(family, key);
  }

  // Protocol: Jira Software REST, bulkByProperties: all pairs must match.
  keysByProperties(family, pairs, upTo = Infinity) {
    return this.entries(family)
      .filter(([, { seq }]) => seq <= upTo)
      .filter(([, { properties }]) =>
        pairs.every(([name, value]) => Object.hasOwn(properties, name) && String(properties[name]) === value),
      )
      .map(([key]) => key);
  }

  snapshot() {
    const entities = {};
    for (const [family, known] of this.#families) entities[family] = Object.fromEntries(known);
    return { entities, deleted: this.#deleted };
  }
}
