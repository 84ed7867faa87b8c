// Who may read an answer across origins, as GitLab's config/application.rb tells rack-cors.

// rack-cors lets these pass whatever is configured.
const SIMPLE_HEADERS = ["accept", "accept-language", "content-language", "content-type"];

const ANY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
const PAGINATION = "Link, X-Total, X-Total-Pages, X-Per-Page, X-Page, X-Next-Page, X-Prev-Page";
const MAX_AGE_S = "7200";

// allow: "*", or "setting": the Origin must be byte for byte what the admin typed as Jira Connect Proxy URL.
const RULES = [
  { path: /^\/api\//, allow: "*", headers: "any", methods: ANY_METHOD, expose: PAGINATION },
  { path: /^\/-\/jira_connect\/oauth_application_id$/, allow: "setting", headers: "any", methods: ["GET", "OPTIONS"] },
  { path: /^\/-\/jira_connect\/subscriptions\.json$/, allow: "setting", headers: "any", methods: ["GET", "OPTIONS"] },
  { path: /^\/-\/jira_connect\/subscriptions\/.*$/, allow: "setting", headers: "any", methods: ["DELETE", "OPTIONS"] },
  {
    path: /^\/oauth\/(token|revoke)$/,
    allow: "*",
    headers: ["authorization", "x-csrf-token", "x-requested-with"],
    methods: ["POST", "OPTIONS"],
  },
];

function find(path, origin, proxyUrl) {
  return RULES.find((rule) => rule.path.test(path) && (rule.allow === "*" || origin === proxyUrl));
}

function headersOf(rule, origin) {
  return {
    "Access-Control-Allow-Origin": rule.allow === "*" ? "*" : origin,
    "Access-Control-Allow-Methods": rule.methods.join(", "),
    "Access-Control-Expose-Headers": rule.expose ?? "",
    "Access-Control-Max-Age": MAX_AGE_S,
  };
}

// The headers that an answer gets.
export function corsHeaders({ path, headers: { origin } }, proxyUrl) {
  const rule = origin === undefined ? undefined : find(path, origin, proxyUrl);
  return rule === undefined ? {} : headersOf(rule, origin);
}

// The whole answer if this is a preflight. One that is refused is a 200 too, only without headers.
export function preflight({ method, path, headers }, proxyUrl) {
  const wantedMethod = headers["access-control-request-method"];
  if (method !== "OPTIONS" || headers.origin === undefined || wantedMethod === undefined) return undefined;
  const rule = find(path, headers.origin, proxyUrl);
  const wantedHeaders = headers["access-control-request-headers"];
  const names = wantedHeaders?.toLowerCase().split(/,\s*/) ?? [];
  const allowed =
    rule?.methods.includes(wantedMethod) &&
    (rule.headers === "any" || names.every((name) => [...SIMPLE_HEADERS, ...rule.headers].includes(name)));
  if (!allowed) return { status: 200 };
  const echo = wantedHeaders === undefined ? {} : { "Access-Control-Allow-Headers": wantedHeaders };
  return { status: 200, headers: { ...headersOf(rule, headers.origin), ...echo } };
}
