//! The simulators of what comes after Connect, asked by plain HTTP: that they take and refuse what Atlassian's documents
//! say, so that what the relay is judged by is judged itself.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{
    cloud::{Cloud, CloudSite, Credential, FAMILIES, Installed},
    fakes::{
        FakeJira,
        http::{FakeServer, answer, client, send},
    },
    harness::{SECRET, TestRelay},
    stage::{APP_KEY, instance_token},
};

/// What a call to the cloud came to.
struct Told {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

async fn ask(method: &str, url: &str, bearer: Option<&str>, body: Option<Value>) -> Told {
    let authorization = bearer.map(|token| format!("Bearer {token}"));
    ask_as(method, url, authorization.as_deref(), body).await
}

async fn ask_as(method: &str, url: &str, authorization: Option<&str>, body: Option<Value>) -> Told {
    let mut request = Request::builder().method(method).uri(url);
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = request.header("content-type", "application/json");
    let response = send(&client(), request.body(Full::from(body)).expect("request")).await;
    Told {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: serde_json::from_slice(response.body()).unwrap_or_default(),
    }
}

/// A request for a token, with something changed.
async fn token_request(cloud: &Cloud, credential: &Credential, change: Value) -> Told {
    let mut body = json!({
        "audience": "api.atlassian.com", "grant_type": "client_credentials",
        "client_id": credential.client_id, "client_secret": credential.client_secret,
    });
    for (name, value) in change.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    let url = format!("{}/oauth/token", cloud.api_url);
    ask("POST", &url, None, Some(body)).await
}

async fn token(cloud: &Cloud, credential: &Credential) -> String {
    let told = token_request(cloud, credential, json!({})).await;
    assert_eq!(told.status, 200, "{}", told.body);
    told.body["access_token"]
        .as_str()
        .expect("token")
        .to_owned()
}

/// Where a family is for an OAuth credential.
fn oauth_url(cloud: &Cloud, site: &CloudSite, family: &str, rest: &str) -> String {
    let (api, cloud_id) = (&cloud.api_url, &site.cloud_id);
    format!("{api}/jira/{family}/0.1/cloud/{cloud_id}/{rest}")
}

/// Where a family is on the site, which is also where a Forge app finds it.
fn site_path(family: &str, rest: &str) -> String {
    let version = match family {
        "devinfo" => "0.10",
        "remotelinks" => "1.0",
        _ => "0.1",
    };
    format!("/rest/{family}/{version}/{rest}")
}

/// A bulk call of one entity, number 7 of repository, pipeline, flag or link 42.
fn bulk(family: &str, sequence: u64) -> Value {
    let commit = json!({
        "id": "c1", "message": "m", "author": {}, "authorTimestamp": "2026-11-26T00:00:00Z", "displayId": "c1",
        "url": "https://gitlab.example/c1", "fileCount": 1, "updateSequenceId": sequence,
    });
    let branch = json!({
        "id": "b1", "name": "ABC-1", "lastCommit": commit, "url": "https://gitlab.example/b1",
        "updateSequenceId": sequence,
    });
    let mut body = match family {
        "devinfo" => json!({"repositories": [{
            "id": "42", "name": "roof", "url": "https://gitlab.example", "updateSequenceId": sequence,
            "branches": [branch],
        }]}),
        "builds" => json!({"builds": [{
            "pipelineId": "42", "buildNumber": 7, "updateSequenceNumber": sequence, "displayName": "d",
            "url": "https://gitlab.example", "state": "successful", "lastUpdated": "2026-11-26T00:00:00Z",
        }]}),
        "deployments" => json!({"deployments": [{
            "deploymentSequenceNumber": 7, "updateSequenceNumber": sequence, "displayName": "d",
            "url": "https://gitlab.example", "description": "", "lastUpdated": "2026-11-26T00:00:00Z",
            "state": "successful", "pipeline": {"id": "42", "displayName": "p", "url": "https://gitlab.example"},
            "environment": {"id": "30", "displayName": "e", "type": "production"},
        }]}),
        "featureflags" => json!({"flags": [{
            "id": "42", "key": "k", "updateSequenceId": sequence, "displayName": "d", "summary": {}, "details": [],
        }]}),
        _ => json!({"remoteLinks": [{
            "id": "42", "updateSequenceNumber": sequence, "displayName": "d", "url": "https://gitlab.example",
            "type": "other", "lastUpdated": "2026-11-26T00:00:00Z",
        }]}),
    };
    body["properties"] = json!({"namespace": "n1"});
    body
}

/// The keys under which the entity of [`bulk`] is known.
fn keys(family: &str) -> Vec<&'static str> {
    match family {
        "devinfo" => vec!["42", "42/branch/b1", "42/commit/c1"],
        "builds" => vec!["42/7"],
        "deployments" => vec!["42/30/7"],
        _ => vec!["42"],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_endpoint_answers_as_atlassians_does() {
    let cloud = Cloud::start();
    let acme = cloud.site("acme");
    let credential = cloud.credential(&acme, &FAMILIES);
    let told = token_request(&cloud, &credential, json!({})).await;
    assert_eq!(told.status, 200);
    assert_eq!(told.body["token_type"], "Bearer");
    assert_eq!(told.body["expires_in"], 900);
    assert_eq!(told.headers["cache-control"], "no-store");

    for (change, status, error) in [
        (json!({"client_secret": "wrong"}), 401, "access_denied"),
        (json!({"client_id": "nobody"}), 401, "access_denied"),
        (json!({"audience": "api.example.com"}), 403, "access_denied"),
        (json!({"audience": null}), 403, "access_denied"),
        (
            json!({"grant_type": "password"}),
            403,
            "unauthorized_client",
        ),
    ] {
        let told = token_request(&cloud, &credential, change.clone()).await;
        let said = (told.status, told.body["error"].as_str());
        assert_eq!(said, (status, Some(error)), "{change}: {}", told.body);
        assert!(told.body["error_description"].is_string());
    }
    let url = format!("{}/oauth/token", cloud.api_url);
    assert_eq!(ask("POST", &url, None, None).await.status, 400);
    assert_eq!(ask("GET", &url, None, None).await.status, 404);

    let path = json!({"path_prefix": "/oauth/token"});
    let throttled = json!({"mode": "status", "status": 429, "headers": {"Retry-After": "1"}, "times": 1, "match": path});
    cloud.fault("api", throttled);
    let told = token_request(&cloud, &credential, json!({})).await;
    assert_eq!(
        (told.status, &told.headers["retry-after"]),
        (429, &"1".parse().expect("value"))
    );
    cloud.fault(
        "api",
        json!({"mode": "delay", "delay_ms": 1, "times": 1, "match": path}),
    );
    assert_eq!(
        token_request(&cloud, &credential, json!({})).await.status,
        200
    );

    let stats = cloud.ask("oauth_stats", json!({}));
    // Neither what was throttled nor what was no POST came to the endpoint.
    assert_eq!(stats["fetches"], 8);
    assert_eq!(stats["granted"][&credential.client_id], 2);
    cloud.ask("oauth_lifetime", json!({"secs": 60}));
    let told = token_request(&cloud, &credential, json!({})).await;
    assert_eq!(told.body["expires_in"], 60);
    assert_eq!(cloud.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_does_what_it_may_on_its_own_site() {
    let cloud = Cloud::start();
    let (acme, other) = (cloud.site("acme"), cloud.site("other"));
    let tenant = ask(
        "GET",
        &format!("{}/_edge/tenant_info", acme.url),
        None,
        None,
    )
    .await;
    assert_eq!(
        (tenant.status, tenant.body),
        (200, json!({"cloudId": acme.cloud_id}))
    );

    let credential = cloud.credential(&acme, &FAMILIES);
    let bearer = token(&cloud, &credential).await;
    let call = async |method: &str, family: &str, rest: &str, body: Option<Value>| {
        let url = oauth_url(&cloud, &acme, family, rest);
        ask(method, &url, Some(&bearer), body).await
    };
    let exists = "existsByProperties?namespace=n1";
    let told = call("GET", "devinfo", exists, None).await;
    assert_eq!(
        (told.status, &told.body["hasDataMatchingProperties"]),
        (200, &json!(false))
    );
    for family in FAMILIES {
        let told = call("POST", family, "bulk", Some(bulk(family, 1))).await;
        assert_eq!(told.status, 202, "{family}: {}", told.body);
        assert_eq!(
            cloud.keys(&acme, &credential.provider, family),
            keys(family)
        );
    }
    let told = call("GET", "devinfo", exists, None).await;
    assert_eq!(told.body["hasDataMatchingProperties"], true);
    let branch = "repository/42/branch/b1?_updateSequenceId=1";
    assert_eq!(call("DELETE", "devinfo", branch, None).await.status, 202);
    assert_eq!(
        cloud.keys(&acme, &credential.provider, "devinfo"),
        ["42", "42/commit/c1"]
    );
    for family in FAMILIES {
        let told = call("DELETE", family, "bulkByProperties?namespace=n1", None).await;
        assert_eq!(told.status, 202);
        assert!(cloud.keys(&acme, &credential.provider, family).is_empty());
    }
    // Refusals and limits are those of the site.
    let told = call("POST", "devinfo", "bulk", Some(json!({}))).await;
    assert_eq!(told.status, 400);
    assert!(told.body["errorMessages"].is_array(), "{}", told.body);
    cloud.ask("max_body_bytes", json!({"at": "api", "bytes": 10}));
    let told = call("POST", "builds", "bulk", Some(bulk("builds", 2))).await;
    assert_eq!(told.status, 413);
    assert!(told.body[0]["message"].is_string(), "{}", told.body);
    cloud.ask("max_body_bytes", json!({"at": "api"}));
    cloud.ask(
        "quota",
        json!({"at": "api", "per_second": 1, "retry_after": 9}),
    );
    // On however slow a machine, at last two are within a second of each other.
    let mut statuses = Vec::new();
    while !statuses.contains(&429) {
        let told = call("POST", "builds", "bulk", Some(bulk("builds", 2))).await;
        if told.status == 429 {
            assert_eq!(told.headers["retry-after"], "9");
            assert_eq!(told.headers["ratelimit-reason"], "jira-burst-based");
        }
        statuses.push(told.status);
    }
    cloud.ask("quota", json!({"at": "api"}));
    assert_eq!(cloud.violations(), json!([]));

    // Somebody else's site, one that is none, and what credentials are not for.
    let foreign = oauth_url(&cloud, &other, "devinfo", exists);
    assert_eq!(ask("GET", &foreign, Some(&bearer), None).await.status, 403);
    let nowhere = foreign.replace(&other.cloud_id, "00000000-0000-0000-0000-000000000000");
    assert_eq!(ask("GET", &nowhere, Some(&bearer), None).await.status, 404);
    let me = format!(
        "{}/ex/jira/{}/rest/api/3/serverInfo",
        cloud.api_url, acme.cloud_id
    );
    let told = ask("GET", &me, Some(&bearer), None).await;
    let unscoped = json!({"code": 401, "message": "Unauthorized; scope does not match"});
    assert_eq!((told.status, told.body), (401, unscoped));
    let stranger = ask(
        "GET",
        &oauth_url(&cloud, &acme, "devinfo", exists),
        Some("made-up"),
        None,
    )
    .await;
    assert_eq!(
        (stranger.status, stranger.body),
        (401, json!({"code": 401, "message": "Unauthorized"}))
    );
    let violations = cloud.violations();
    let found = violations.as_array().map(Vec::len);
    assert_eq!(found, Some(3), "{violations:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions_and_tokens_of_a_credential_end() {
    let cloud = Cloud::start();
    let acme = cloud.site("acme");
    let credential = cloud.credential(&acme, &["builds"]);
    let bearer = token(&cloud, &credential).await;
    let write = async |bearer: &str, family: &str| {
        let url = oauth_url(&cloud, &acme, family, "bulk");
        ask("POST", &url, Some(bearer), Some(bulk(family, 1))).await
    };
    assert_eq!(write(&bearer, "builds").await.status, 202);
    for family in FAMILIES.into_iter().filter(|family| *family != "builds") {
        let told = write(&bearer, family).await;
        assert_eq!(told.status, 403);
        // As in all of the family's refusals.
        match family {
            "devinfo" => assert!(told.body["errorMessages"].is_array(), "{}", told.body),
            _ => assert!(told.body[0]["message"].is_string(), "{}", told.body),
        }
    }
    let more = json!({"site": "acme", "client_id": credential.client_id, "permissions": FAMILIES});
    cloud.ask("credential", more);
    assert_eq!(write(&bearer, "devinfo").await.status, 202, "at once");

    let mine = json!({"client_id": credential.client_id});
    cloud.ask("oauth_expire", mine.clone());
    assert_eq!(
        write(&bearer, "builds").await.status,
        401,
        "before its time"
    );
    let bearer = token(&cloud, &credential).await;
    assert_eq!(write(&bearer, "builds").await.status, 202);
    cloud.ask("oauth_lifetime", json!({"secs": 0}));
    let late = token(&cloud, &credential).await;
    assert_eq!(write(&late, "builds").await.status, 401, "its time is over");
    cloud.ask("delete_credential", mine);
    assert_eq!(
        write(&bearer, "builds").await.status,
        401,
        "an admin deleted it"
    );
    assert_eq!(
        token_request(&cloud, &credential, json!({})).await.status,
        401
    );
    assert_eq!(cloud.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_providers_send_to_one_site_is_kept_apart() {
    let cloud = Cloud::start();
    let acme = cloud.site("acme");
    cloud.connect(&acme, APP_KEY, &[SECRET]);
    let first = cloud.credential(&acme, &FAMILIES);
    let second = cloud.credential(&acme, &FAMILIES);
    let remote = Remote::start(&[]).await;
    let app = cloud.app(&remote.url());
    let forge = cloud.install(&app, &acme, json!({}));

    for family in FAMILIES {
        let path = site_path(family, "bulk");
        let jwt = format!("JWT {}", instance_token(SECRET, "POST", &path, json!({})));
        let url = format!("{}{path}", acme.url);
        let told = ask_as("POST", &url, Some(&jwt), Some(bulk(family, 1))).await;
        assert_eq!(told.status, 202, "{}", told.body);
        for (sequence, credential) in [(2, &first), (3, &second)] {
            let url = oauth_url(&cloud, &acme, family, "bulk");
            let bearer = token(&cloud, credential).await;
            ask("POST", &url, Some(&bearer), Some(bulk(family, sequence))).await;
        }
        let url = format!("{}{path}", forge.api_base_url);
        let bearer = system_token(&cloud, &forge);
        let told = ask("POST", &url, Some(&bearer), Some(bulk(family, 4))).await;
        assert_eq!(told.status, 202, "{}", told.body);
        for (sequence, provider) in [
            (1, "connect"),
            (2, &first.provider),
            (3, &second.provider),
            (4, &forge.provider),
        ] {
            for key in keys(family) {
                let entities = cloud.entities(&acme, provider, family);
                assert_eq!(
                    entities[key]["history"],
                    json!([sequence]),
                    "{provider} {family} {key}"
                );
            }
        }
    }
    // What an uninstalled app had sent is gone, and nobody else's.
    cloud.with(&forge, "uninstall", json!({}));
    assert!(cloud.keys(&acme, &forge.provider, "builds").is_empty());
    assert_eq!(cloud.keys(&acme, "connect", "builds"), keys("builds"));
    assert_eq!(cloud.violations(), json!([]));
}

/// A remote of a Forge app that answers as it was told to, and then 204.
struct Remote {
    server: FakeServer,
    heard: Arc<Mutex<Vec<Request<Bytes>>>>,
}

impl Remote {
    async fn start(statuses: &[u16]) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let statuses = Arc::new(Mutex::new(VecDeque::from(statuses.to_vec())));
        let server = FakeServer::start({
            let heard = Arc::clone(&heard);
            move |request: Request<Bytes>| {
                heard.lock().expect("heard").push(request);
                let status = statuses.lock().expect("statuses").pop_front();
                async move { remote_answer(status.unwrap_or(204)) }
            }
        });
        Self {
            server: server.await,
            heard,
        }
    }

    fn url(&self) -> String {
        self.server.url()
    }

    fn take(&self) -> Vec<Request<Bytes>> {
        std::mem::take(&mut *self.heard.lock().expect("heard"))
    }

    fn take_one(&self) -> Request<Bytes> {
        let mut heard = self.take();
        assert_eq!(heard.len(), 1);
        heard.remove(0)
    }
}

fn remote_answer(status: u16) -> Response<Bytes> {
    let body = if status == 204 { "" } else { "{\"seen\":true}" };
    answer(status, body)
}

fn bearer(request: &Request<Bytes>) -> String {
    let value = request.headers()["authorization"].to_str().expect("text");
    value.strip_prefix("Bearer ").expect("bearer").to_owned()
}

fn body(request: &Request<Bytes>) -> Value {
    serde_json::from_slice(request.body()).expect("JSON")
}

/// What npm `jose` says of a token by the published keys: its claims, or what is wrong with it.
fn verify(cloud: &Cloud, token: &str, app: &str) -> Result<Value, String> {
    let said = cloud.ask("verify", json!({"token": token, "audience": app}));
    match said["valid"].as_bool() {
        Some(true) => Ok(said["claims"].clone()),
        _ => Err(said["code"].as_str().unwrap_or_default().to_owned()),
    }
}

fn system_token(cloud: &Cloud, installed: &Installed) -> String {
    let told = cloud.with(installed, "system_token", json!({}));
    told["token"].as_str().expect("token").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_hears_of_an_installation_as_forge_tells_it() {
    let cloud = Cloud::start();
    let (acme, remote) = (cloud.site("acme"), Remote::start(&[]).await);
    let app = cloud.app(&remote.url());
    let installed = cloud.install(&app, &acme, json!({"version": "2.3.0"}));
    assert_eq!(installed.told["delivered"], true, "{}", installed.told);
    let api_base_url = format!("{}/ex/jira/{}", cloud.api_url, acme.cloud_id);
    assert_eq!(installed.api_base_url, api_base_url);

    let event = remote.take_one();
    assert_eq!(event.uri().path(), "/-/jira_connect/forge/events");
    assert_eq!(event.method(), "POST");
    let told = body(&event);
    assert_eq!(told["eventType"], "avi:forge:installed:app");
    assert_eq!(told["app"]["version"], "2");
    assert!(installed.id.ends_with(told["id"].as_str().expect("id")));
    for header in ["x-b3-traceid", "x-b3-spanid", "x-forge-oauth-system"] {
        assert!(event.headers().contains_key(header), "{header}");
    }
    let claims = verify(&cloud, &bearer(&event), &app).expect("valid");
    assert_eq!(
        (&claims["iss"], &claims["aud"]),
        (&json!("forge/invocation-token"), &json!(app))
    );
    assert_eq!(claims["app"]["installationId"], installed.id);
    assert_eq!(claims["app"]["apiBaseUrl"], api_base_url);
    assert_eq!(claims["app"]["environment"]["type"], "PRODUCTION");
    let contexts = json!([{"name": "jira", "cloudId": acme.cloud_id, "apiBaseUrl": api_base_url}]);
    assert_eq!(claims["app"]["installation"]["contexts"], contexts);
    assert!(
        claims["principal"].is_null() && claims["context"].is_null(),
        "{claims}"
    );
    let lifetime = claims["exp"].as_i64().zip(claims["iat"].as_i64());
    assert_eq!(lifetime.map(|(exp, iat)| exp - iat), Some(25));

    cloud.with(&installed, "upgrade", json!({"version": "3.0.0"}));
    let event = remote.take_one();
    assert_eq!(body(&event)["eventType"], "avi:forge:upgraded:app");
    let claims = verify(&cloud, &bearer(&event), &app).expect("valid");
    assert_eq!(claims["app"]["appVersion"], "3.0.0");
    cloud.with(&installed, "scheduled", json!({}));
    let event = remote.take_one();
    assert_eq!(event.uri().path(), "/-/jira_connect/forge/scheduled");
    assert_eq!(body(&event)["context"]["cloudId"], acme.cloud_id);

    let how = json!({"method": "PUT", "path": "/-/jira_connect/links/x?a=b", "body": {"name": "y"}, "principal": "admin"});
    let told = cloud.with(&installed, "invoke", how);
    assert_eq!(
        (&told["status"], &told["swallowed"]),
        (&json!(204), &json!(null))
    );
    let call = remote.take_one();
    assert_eq!(
        (call.method().as_str(), call.uri().to_string().as_str()),
        ("PUT", "/-/jira_connect/links/x?a=b")
    );
    assert_eq!(body(&call), json!({"name": "y"}));
    assert!(call.headers().contains_key("x-forge-oauth-system"));
    let claims = verify(&cloud, &bearer(&call), &app).expect("valid");
    assert_eq!(claims["principal"], "admin");
    assert_eq!(claims["context"]["siteUrl"], acme.url);
    cloud.ask(
        "rename",
        json!({"site": "acme", "base_url": "https://renamed.atlassian.net"}),
    );
    cloud.with(
        &installed,
        "invoke",
        json!({"path": "/links", "via": "requestRemote"}),
    );
    let call = remote.take_one();
    assert!(!call.headers().contains_key("x-forge-oauth-system"));
    let claims = verify(&cloud, &bearer(&call), &app).expect("valid");
    assert_eq!(
        claims["context"]["siteUrl"],
        "https://renamed.atlassian.net"
    );

    cloud.with(&installed, "uninstall", json!({}));
    let event = remote.take_one();
    assert_eq!(event.uri().path(), "/-/jira_connect/forge/uninstall");
    cloud.with(
        &installed,
        "uninstall",
        json!({"silent": true, "status": 404}),
    );
    assert!(remote.take().is_empty());
    let known = cloud.ask("installations", json!({}));
    assert_eq!(known["installations"][0]["gone"], 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_repeated_and_schedules_are_not() {
    let cloud = Cloud::start();
    let acme = cloud.site("acme");
    cloud.ask("retry_delay", json!({"ms": 1}));
    let remote = Remote::start(&[503, 401, 500]).await;
    let app = cloud.app(&remote.url());
    let installed = cloud.install(&app, &acme, json!({}));
    assert_eq!(installed.told["delivered"], true);
    let heard = remote.take();
    let reasons: Vec<Value> = heard
        .iter()
        .map(|event| body(event)["retryContext"]["retryReason"].clone())
        .collect();
    let general = "INVALID_REMOTE_INVOCATION_ERROR";
    assert_eq!(
        reasons,
        [
            json!(null),
            json!(general),
            json!("INVALID_FORGE_INVOCATION_TOKEN"),
            json!(general)
        ]
    );
    let mut ids: Vec<String> = heard
        .iter()
        .map(|event| verify(&cloud, &bearer(event), &app).expect("valid")["jti"].to_string())
        .collect();
    ids.dedup();
    assert_eq!(ids.len(), 4, "each with a token of its own");

    let remote = Remote::start(&[500; 9]).await;
    cloud.ask("app", json!({"app_id": app, "remote": remote.url()}));
    let told = cloud.with(&installed, "upgrade", json!({}));
    assert_eq!(
        (&told["delivered"], &told["status"]),
        (&json!(false), &json!(500))
    );
    assert_eq!(remote.take().len(), 5);
    cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(remote.take().len(), 1);

    // Nor are a page's calls, whose answers it does not always hear.
    for (status, reason) in [
        (401, json!("INVALID_FORGE_INVOCATION_TOKEN")),
        (500, json!(general)),
        (204, json!(null)),
    ] {
        let remote = Remote::start(&[status]).await;
        cloud.ask("app", json!({"app_id": app, "remote": remote.url()}));
        let told = cloud.with(&installed, "invoke", json!({"path": "/links"}));
        assert_eq!(
            (&told["status"], &told["swallowed"]),
            (&json!(status), &reason)
        );
        assert_eq!(remote.take().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_tokens_are_as_hostile_as_they_say() {
    let cloud = Cloud::start();
    let (acme, remote) = (cloud.site("acme"), Remote::start(&[]).await);
    let (app, other) = (cloud.app(&remote.url()), cloud.app(&remote.url()));
    let installed = cloud.install(&app, &acme, json!({}));
    let dev = cloud.install(&app, &acme, json!({"environment": "DEVELOPMENT"}));
    remote.take();
    for (how, code) in [
        (
            json!({"claims": {"aud": other}}),
            "ERR_JWT_CLAIM_VALIDATION_FAILED",
        ),
        (
            json!({"claims": {"aud": null}}),
            "ERR_JWT_CLAIM_VALIDATION_FAILED",
        ),
        (
            json!({"claims": {"iss": "somebody"}}),
            "ERR_JWT_CLAIM_VALIDATION_FAILED",
        ),
        (json!({"claims": {"exp": 1}}), "ERR_JWT_EXPIRED"),
        (
            json!({"signer": "stranger"}),
            "ERR_JWS_SIGNATURE_VERIFICATION_FAILED",
        ),
        (
            json!({"signer": "hs256_public"}),
            "ERR_JOSE_ALG_NOT_ALLOWED",
        ),
        (json!({"signer": "none"}), "ERR_JOSE_ALG_NOT_ALLOWED"),
        (
            json!({"header": {"kid": "../../etc/passwd"}}),
            "ERR_JWKS_NO_MATCHING_KEY",
        ),
    ] {
        let minted = cloud.with(&installed, "fit", how.clone());
        let token = minted["token"].as_str().expect("token");
        assert_eq!(verify(&cloud, token, &app), Err(code.to_owned()), "{how}");
    }
    // Well signed, and for somebody to look at.
    let minted = cloud.with(
        &installed,
        "fit",
        json!({"header": {"jku": "https://evil.example/jwks.json"}}),
    );
    assert_eq!(minted["header"]["jku"], "https://evil.example/jwks.json");
    let how = json!({"kind": "event", "claims": {"app.environment.type": "DEVELOPMENT"}});
    let minted = cloud.with(&installed, "fit", how);
    let claims = verify(&cloud, minted["token"].as_str().expect("token"), &app).expect("valid");
    assert_eq!(claims["app"]["environment"]["type"], "DEVELOPMENT");
    assert_eq!(
        claims["app"]["environment"]["id"],
        minted["claims"]["app"]["environment"]["id"]
    );
    let minted = cloud.with(&dev, "fit", json!({}));
    let claims = verify(&cloud, minted["token"].as_str().expect("token"), &app).expect("valid");
    let environments = &cloud.ask("app", json!({"app_id": app}))["environments"];
    assert_eq!(
        claims["app"]["environment"],
        json!({"type": "DEVELOPMENT", "id": environments["DEVELOPMENT"]})
    );
    assert_ne!(environments["DEVELOPMENT"], environments["PRODUCTION"]);
    assert_eq!(claims["app"]["installationId"], dev.id);

    // With any of them, and with one that was used before, each invocation can be sent.
    let token = minted["token"].as_str().expect("token");
    for command in ["upgrade", "scheduled", "invoke"] {
        let how =
            json!({"token": token, "path": "/x", "headers": {"x-forge-oauth-system": "stolen"}});
        cloud.with(&installed, command, how);
        let heard = remote.take_one();
        assert_eq!((bearer(&heard).as_str(), heard.uri().path()), (token, "/x"));
        assert_eq!(heard.headers()["x-forge-oauth-system"], "stolen");
    }
    let how = json!({"claims": {"jti": "again"}, "body": {"id": "another", "eventType": null}});
    cloud.with(&installed, "upgrade", how);
    let heard = remote.take_one();
    assert_eq!(
        (&body(&heard)["id"], &body(&heard)["eventType"]),
        (&json!("another"), &json!(null))
    );
    assert_eq!(
        verify(&cloud, &bearer(&heard), &app).expect("valid")["jti"],
        "again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_apps_own_tokens_open_its_site_until_they_end() {
    let cloud = Cloud::start();
    let (acme, other) = (cloud.site("acme"), cloud.site("other"));
    let remote = Remote::start(&[]).await;
    let app = cloud.app(&remote.url());
    let installed = cloud.install(&app, &acme, json!({}));
    let elsewhere = cloud.install(&app, &other, json!({}));
    let call = async |bearer: &str, method: &str, path: &str, body: Option<Value>| {
        let url = format!("{}{path}", installed.api_base_url);
        ask(method, &url, Some(bearer), body).await
    };
    let sent = remote.take().remove(0);
    let bearer = sent.headers()["x-forge-oauth-system"]
        .to_str()
        .expect("text")
        .to_owned();
    let path = |family: &str| site_path(family, "bulk");
    for family in FAMILIES {
        let told = call(&bearer, "POST", &path(family), Some(bulk(family, 1))).await;
        assert_eq!(told.status, 202, "{}", told.body);
        assert_eq!(cloud.keys(&acme, &installed.provider, family), keys(family));
    }
    let user = "/rest/api/3/user?accountId=admin&expand=groups";
    assert_eq!(call(&bearer, "GET", user, None).await.status, 200);
    let question = json!({"accountId": "admin", "globalPermissions": ["ADMINISTER"]});
    let told = call(
        &bearer,
        "POST",
        "/rest/api/3/permissions/check",
        Some(question),
    )
    .await;
    assert_eq!(told.body["globalPermissions"], json!(["ADMINISTER"]));
    let told = call(&bearer, "GET", "/rest/api/3/serverInfo", None).await;
    assert_eq!(told.body["baseUrl"], acme.url);
    assert_eq!(cloud.violations(), json!([]));
    let foreign = system_token(&cloud, &elsewhere);
    assert_eq!(call(&foreign, "GET", user, None).await.status, 403);
    let violations = cloud.violations();
    assert_eq!(
        violations.as_array().map(Vec::len),
        Some(1),
        "{violations:#}"
    );

    // A scope that the manifest lacks, and a module.
    cloud.ask("app", json!({"app_id": app, "scopes": ["read:jira-user", "write:build-info:jira"], "modules": ["devinfo"]}));
    let told = call(&bearer, "POST", &path("devinfo"), Some(bulk("devinfo", 2))).await;
    assert_eq!(
        (told.status, &told.body["message"]),
        (401, &json!("Unauthorized; scope does not match"))
    );
    let told = call(&bearer, "POST", &path("builds"), Some(bulk("builds", 2))).await;
    assert_eq!(told.status, 403);
    assert!(told.body[0]["message"].is_string());

    cloud.with(&installed, "expire", json!({}));
    let told = call(&bearer, "GET", user, None).await;
    assert_eq!(
        (told.status, told.body),
        (401, json!({"code": 401, "message": "Unauthorized"}))
    );
    assert_eq!(
        call(&system_token(&cloud, &installed), "GET", user, None)
            .await
            .status,
        200
    );
    cloud.ask("system_tokens", json!({"lifetime_secs": 0, "opaque": true}));
    let late = system_token(&cloud, &installed);
    assert!(!late.contains('.'));
    assert_eq!(call(&late, "GET", user, None).await.status, 401);
    cloud.ask(
        "system_tokens",
        json!({"lifetime_secs": 3300, "opaque": false}),
    );
    for status in [401, 403, 404] {
        let gone = cloud.install(&app, &acme, json!({"silent": true}));
        let token = system_token(&cloud, &gone);
        assert_eq!(call(&token, "GET", user, None).await.status, 200);
        cloud.with(
            &gone,
            "uninstall",
            json!({"silent": true, "status": status}),
        );
        assert_eq!(call(&token, "GET", user, None).await.status, status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_published_rotated_and_withheld() {
    let cloud = Cloud::start();
    let (acme, remote) = (cloud.site("acme"), Remote::start(&[]).await);
    let app = cloud.app(&remote.url());
    let installed = cloud.install(&app, &acme, json!({}));
    let fetch = async || ask("GET", &cloud.jwks_url, None, None).await;
    let mint = || {
        let minted = cloud.with(&installed, "fit", json!({}));
        minted["token"].as_str().expect("token").to_owned()
    };
    let told = fetch().await;
    let key = &told.body["keys"][0];
    assert_eq!(
        (told.status, &key["alg"], &key["use"]),
        (200, &json!("RS256"), &json!("sig"))
    );
    let kid = key["kid"].as_str().expect("kid");
    assert!(kid.starts_with("forge/invocation-token/wf-"), "{kid}");
    assert!(!told.headers.contains_key("cache-control"));
    let old = mint();
    cloud.ask("rotate_key", json!({}));
    cloud.ask("cache_control", json!({"value": "max-age=60"}));
    let told = fetch().await;
    assert_eq!(told.body["keys"].as_array().map(Vec::len), Some(2));
    assert_ne!(told.body["keys"][0]["kid"], kid);
    assert_eq!(told.headers["cache-control"], "max-age=60");
    for token in [&old, &mint()] {
        assert!(verify(&cloud, token, &app).is_ok());
    }
    cloud.ask("rotate_key", json!({"forget": true}));
    assert_eq!(
        verify(&cloud, &old, &app),
        Err("ERR_JWKS_NO_MATCHING_KEY".to_owned())
    );
    cloud.ask("pad_keys", json!({"count": 3}));
    let told = fetch().await;
    assert_eq!(told.body["keys"].as_array().map(Vec::len), Some(4));

    cloud.fault("jwks", json!({"mode": "status", "status": 500}));
    assert_eq!(fetch().await.status, 500);
    cloud.heal("jwks");
    assert_eq!(fetch().await.status, 200);
    let fetches = cloud.requests("jwks");
    assert_eq!(
        fetches
            .iter()
            .filter(|fetch| fetch["fault"] == "status")
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_can_be_aimed_at_the_cloud() {
    let cloud = Cloud::start();
    let (acme, jira) = (cloud.site("acme"), FakeJira::start("unused").await);
    let app = cloud.app("http://127.0.0.1:1");
    let relay = TestRelay::start_with(&jira, |settings| cloud.aim(settings, &app, &[&acme])).await;
    let installations = relay.admin("GET", "/api/v1/installations", None, 200).await;
    assert_eq!(installations, json!([]));
}
