// The groups of an instance, and the API's way to page through them. Protocol: GitLab "Groups API", "Pagination".

// GitLab's access levels.
export const MAINTAINER = 40;
const REPORTER = 20;

// Protocol: GitLab GroupFinder searches from three characters on.
const SEARCH_MIN_LENGTH = 3;

const DEPARTMENTS = [
  "Accounting", "Backoffice", "Catalogue", "Data Warehouse", "E-Commerce", "Fleet", "Games", "Hardware", "Identity",
  "Journals", "Kitchen", "Logistics", "Maps", "Newsroom", "Observatory",
];
const TEAMS = ["Android", "Web"];

// 45 that the user maintains, of which every third is a department with its teams below, and three for trouble.
export function makeGroups(origin) {
  const groups = [];
  const add = (name, { parent, ...more } = {}) => {
    const path = name.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
    const group = {
      id: 100 + groups.length,
      name,
      path,
      full_name: parent ? `${parent.full_name} / ${name}` : name,
      full_path: parent ? `${parent.full_path}/${path}` : path,
      description: "",
      visibility: "private",
      avatar_url: null,
      parent_id: parent?.id ?? null,
      created_at: "2023-05-04T09:12:00.000Z",
      access_level: MAINTAINER,
      ...more,
    };
    groups.push({ ...group, web_url: `${origin}/groups/${group.full_path}` });
    return groups.at(-1);
  };
  for (const name of DEPARTMENTS) {
    const parent = add(name, { description: `Everything about ${name.toLowerCase()}.` });
    for (const team of TEAMS) add(team, { parent });
  }
  add("<img src=x onerror=alert(1)>", { path: "markup", full_path: "markup", description: "<script>alert(2)</script>" });
  add("Zoological Gardens, Aquariums, Botanical Collections and Everything Else That Needs Watering Twice a Day", {
    path: "zoo",
    full_path: "zoo",
    avatar_url: `${origin}/uploads/-/system/group/avatar/1/zoo.png`,
  });
  add("Only Read", { access_level: REPORTER });
  return groups;
}

// One page of what was asked for: {json, headers}.
export function pageOfGroups(groups, { parameters, url, withoutTotals }) {
  const search = parameters.search?.toLowerCase() ?? "";
  const found = groups
    .filter((group) => group.access_level >= Number(parameters.min_access_level ?? 0))
    .filter(({ name, path }) =>
      search.length >= SEARCH_MIN_LENGTH ? `${name} ${path}`.toLowerCase().includes(search) : true,
    )
    .sort(order(parameters.order_by ?? "name", parameters.sort ?? "asc"));
  const page = Math.max(1, Number(parameters.page ?? 1));
  const perPage = Math.min(100, Number(parameters.per_page ?? 20));
  const pages = Math.max(1, Math.ceil(found.length / perPage));
  const shown = found.slice((page - 1) * perPage, page * perPage);
  return {
    json: shown.map(({ access_level, ...group }) => group),
    headers: {
      "X-Page": String(page),
      "X-Per-Page": String(perPage),
      "X-Next-Page": page < pages ? String(page + 1) : "",
      "X-Prev-Page": page > 1 ? String(page - 1) : "",
      Link: links(url, { page, pages }),
      // Protocol: GitLab "Pagination response headers": none above 10,000.
      ...(withoutTotals ? {} : { "X-Total": String(found.length), "X-Total-Pages": String(pages) }),
    },
  };
}

function order(field, direction) {
  const sign = direction === "desc" ? -1 : 1;
  return (a, b) => sign * (a[field] < b[field] ? -1 : a[field] > b[field] ? 1 : a.id - b.id);
}

function links(url, { page, pages }) {
  const to = (number, rel) => {
    const target = new URL(url);
    target.searchParams.set("page", String(number));
    return `<${target.href}>; rel="${rel}"`;
  };
  const found = [to(1, "first"), to(pages, "last")];
  if (page > 1) found.unshift(to(page - 1, "prev"));
  if (page < pages) found.unshift(to(page + 1, "next"));
  return found.join(", ");
}
