//! Everybody: Jira (an nginx that answers), the three proxies in front of it, and what the relay needs to start.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    fakes::{
        FakeInstance, FakeJira,
        http::{client, free_port, send},
        instance::token,
        jira::now,
    },
    load::Traffic,
    process::{Cores, Process, command},
};

pub const CLIENT_KEY: &str = "11111111-2222-3333-4444-555555555555";

/// The secret between Jira and the relay.
pub const SECRET: &str = "a-secret-of-a-site-a-secret-of-a-site";

/// Where the proxies may run, and everything else.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    pub proxy: Cores,
    pub load: Cores,
}

/// An nginx, and where it listens.
pub struct Server {
    pub process: Process,
    pub port: u16,
}

/// The relay, installed in Jira and linked to one instance.
pub struct Relay {
    folder: PathBuf,
    places: Places,
    settings: Vec<(String, String)>,
    pub admin_port: u16,
    pub port: u16,
    pub jira: FakeJira,
    pub instance: FakeInstance,
    /// What the instance signs with.
    pub secret: String,
    /// Before anybody asked anything of it.
    pub resident_kib_at_start: u64,
}

/// Answers like Jira, as fast as anything can.
pub fn upstream(folder: &Path, places: Places) -> Server {
    let account = "5b10ac8d82e05b22cc7d4ef5";
    let avatar = |size: u32| {
        format!("https://avatar-management.example.net/{account}/{size}?seed=0123456789abcdef")
    };
    let groups: Vec<Value> = ["administrators", "jira-software-users", "site-admins"]
        .map(|name| json!({"name": name, "groupId": "276f955c-63d7-42c8-9520-92d01dca0625"}))
        .into();
    let user = json!({
        "self": format!("https://acme.atlassian.net/rest/api/3/user?accountId={account}"),
        "accountId": account, "accountType": "atlassian", "emailAddress": "mia@example.com",
        "avatarUrls": {"48x48": avatar(48), "24x24": avatar(24), "16x16": avatar(16), "32x32": avatar(32)},
        "displayName": "Mia Krystof", "active": true, "timeZone": "Australia/Sydney", "locale": "en_AU",
        "groups": {"size": 3, "items": groups},
        "applicationRoles": {"size": 1, "items": []}, "expand": "groups,applicationRoles",
    });
    let accepted = json!({
        "acceptedDevinfoEntities": {"42": {"commits": [], "branches": [], "pullRequests": []}},
        "failedDevinfoEntities": {}, "unknownIssueKeys": [],
    });
    // `return` alone would answer before the body is there; `mirror` reads it first. What it is mirrored to does
    // nothing, and the answer to a file that is not there is ours.
    let locations = format!(
        "location = /rest/api/3/user {{ default_type application/json; return 200 '{user}'; }}
         location = /rest/devinfo/0.10/bulk {{
             mirror /nowhere; mirror_request_body on; log_not_found off;
             error_page 404 405 = @accepted;
         }}
         location = /nowhere {{ internal; return 204; }}
         location @accepted {{ default_type application/json; return 202 '{accepted}'; }}"
    );
    nginx(folder, "upstream", places.load, "", &locations)
}

/// What one would put in front of Jira if it needed no token.
pub fn plain_nginx(folder: &Path, places: Places, upstream: &Server) -> Server {
    let pool = format!(
        "upstream jira {{ server 127.0.0.1:{}; keepalive 64; keepalive_requests 100000000; }}",
        upstream.port
    );
    let location = "location / {
        proxy_pass http://jira; proxy_http_version 1.1; proxy_set_header Connection \"\";
    }";
    nginx(folder, "nginx", places.proxy, &pool, location)
}

/// As many workers as cores, no log, connections that stay; bodies stay in memory.
fn nginx(folder: &Path, name: &str, cores: Cores, pool: &str, locations: &str) -> Server {
    let port = free_port();
    let folder = folder.join(name);
    fs::create_dir(&folder).unwrap();
    let workers = match cores {
        Cores::All => "auto",
        Cores::First | Cores::Second => "1",
    };
    let configuration = format!(
        "daemon off; worker_processes {workers}; pid nginx.pid;
         events {{ worker_connections 4096; }}
         http {{
             access_log off; keepalive_requests 100000000; keepalive_timeout 300s;
             client_body_buffer_size 256k; client_max_body_size 10m;
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
             uwsgi_temp_path uwsgi; scgi_temp_path scgi;
             {pool}
             server {{ listen 127.0.0.1:{port} backlog=4096; {locations} }}
         }}"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    let log = folder.join("log");
    let mut nginx = command("nginx", cores);
    nginx.arg("-p").arg(&folder).arg("-c").arg(&file);
    nginx.args(["-e", "stderr"]);
    Server {
        process: Process::start_server(&mut nginx, &log, port),
        port,
    }
}

/// This program again, as the bare relay.
pub fn bare(folder: &Path, places: Places, upstream: &Server, secret: &str) -> Server {
    let port = free_port();
    let program = std::env::current_exe().unwrap();
    let mut bare = command(program.to_str().unwrap(), places.proxy);
    bare.args(["bare", &port.to_string()])
        .args([&format!("127.0.0.1:{}", upstream.port), secret]);
    Server {
        process: Process::start_server(&mut bare, &folder.join("bare.log"), port),
        port,
    }
}

impl Relay {
    /// Installs and links, with everything at its default that can be on loopback.
    pub async fn set_up(folder: &Path, places: Places, site: &str) -> Self {
        let folder = folder.join("relay");
        fs::create_dir(&folder).unwrap();
        let mut jira = FakeJira::start(CLIENT_KEY).await;
        jira.base_url = site.to_owned();
        let (port, admin_port) = (free_port(), free_port());
        let url = format!("http://127.0.0.1:{port}");
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let settings = [
            ("PUBLIC__URL", url.clone()),
            ("PUBLIC__LISTEN", format!("127.0.0.1:{port}")),
            ("ADMIN__LISTEN", format!("127.0.0.1:{admin_port}")),
            ("ADMIN__TOKEN_FILE", path("admin-token")),
            ("STORE__PATH", path("store")),
            ("STORE__KEY_FILE", path("store-key")),
            ("JIRA__INSTALL_KEYS_URL", jira.keys.url()),
            ("JIRA__EXTRA_SITES", jira.base_url.clone()),
            // Counted like anybody's, and never too fast.
            (
                "LIMITS__REQUESTS_PER_INSTALLATION_PER_SEC",
                "1000000".to_owned(),
            ),
            // All of them come from one address.
            ("LIMITS__CONNECTIONS_PER_ADDRESS_MAX", "0".to_owned()),
            ("INSTANCES__DANGEROUS_ALLOW_HTTP", "true".to_owned()),
            (
                "INSTANCES__DANGEROUS_ALLOW_PRIVATE_ADDRESSES",
                "true".to_owned(),
            ),
        ]
        .map(|(key, value)| (format!("JIRA_CONNECT_PROXY__{key}"), value))
        .into();
        let instance = FakeInstance::start(&url, "").await;
        let mut relay = Self {
            folder,
            places,
            settings,
            admin_port,
            port,
            jira,
            instance,
            secret: String::new(),
            resident_kib_at_start: 0,
        };
        let process = relay.start();
        // Long enough for what starts by itself.
        tokio::time::sleep(Duration::from_secs(1)).await;
        relay.resident_kib_at_start = process.resident_kib();
        relay.link().await;
        process.stop("TERM");
        relay
    }

    /// Starts it on what it knows, with its log in a file.
    pub fn start(&self) -> Process {
        let mut relay = command(env!("CARGO_BIN_EXE_jira-connect-proxy"), self.places.proxy);
        relay
            .current_dir(&self.folder)
            .env_clear()
            .envs(self.settings.clone());
        if let Some(path) = std::env::var_os("PATH") {
            relay.env("PATH", path);
        }
        let process = Process::start_server(&mut relay, &self.log(), self.port);
        // The ports are bound before the store is open.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.is_ready() {
            assert!(Instant::now() < deadline, "the relay never gets ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        process
    }

    /// Where each request leaves a line.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// One call of the admin API: status and answer.
    pub async fn admin(&self, method: &str, path: &str, wish: Option<Value>) -> (u16, Value) {
        let token = fs::read_to_string(self.folder.join("admin-token")).unwrap();
        let request = Request::builder()
            .method(method)
            .uri(format!("http://127.0.0.1:{}{path}", self.admin_port))
            .header("authorization", format!("Bearer {}", token.trim()))
            .body(Full::from(
                wish.map(|wish| wish.to_string()).unwrap_or_default(),
            ))
            .unwrap();
        let answer = send(&client(), request).await;
        let value = serde_json::from_slice(answer.body()).unwrap_or_default();
        (answer.status().as_u16(), value)
    }

    /// The app as Jira knows it.
    pub fn app_base_url(&self) -> String {
        format!("http://127.0.0.1:{}/-/jira_connect", self.port)
    }

    fn is_ready(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.admin_port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(
                b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n",
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer.starts_with("HTTP/1.1 200 "))
        };
        ask().unwrap_or(false)
    }

    async fn link(&mut self) {
        let answer = self.jira.installed(&self.app_base_url(), SECRET).await;
        assert!(answer.status().is_success(), "{answer:?}");
        let wish = json!({"client_key": CLIENT_KEY, "instance_url": self.instance.url()});
        let (status, link) = self.admin("POST", "/api/v1/links", Some(wish)).await;
        assert_eq!(status, 201, "{link}");
        let state = self
            .instance
            .until("linked", |state| {
                state.installations.contains_key(CLIENT_KEY)
            })
            .await;
        let known = state.installations.get(CLIENT_KEY).unwrap();
        self.secret.clone_from(&known.shared_secret);
    }
}

/// Both kinds of traffic, with tokens that outlast the run: the relay limits an instance's `exp` by nothing.
pub fn traffic(secret: &str) -> [Traffic; 2] {
    let user = "/rest/api/3/user?accountId=5b10ac8d82e05b22cc7d4ef5&expand=groups";
    let bulk = "/rest/devinfo/0.10/bulk";
    let long_lived = json!({"exp": now().as_second() + 3600});
    [
        Traffic {
            name: "GET of a user, re-signed",
            target: 1.4,
            method: "GET",
            path: user,
            status: 200,
            token: token(secret, "GET", user, long_lived.clone()),
            body: String::new(),
        },
        Traffic {
            name: "POST of 16 KiB, every id rewritten",
            target: 1.6,
            method: "POST",
            path: bulk,
            status: 202,
            token: token(secret, "POST", bulk, long_lived),
            body: devinfo(),
        },
    ]
}

/// What a GitLab sends of six branches with their merge requests (its `lib/atlassian/jira_connect/serializers`): 16 KiB.
fn devinfo() -> String {
    let project = "https://gitlab.example.com/group/subgroup/project";
    let sequence = 1_795_600_000_000_u64;
    let author = json!({
        "name": "Ada Author", "email": "ada@example.com", "username": "ada",
        "url": "https://gitlab.example.com/ada",
        "avatar": "https://gitlab.example.com/uploads/-/system/user/avatar/7/avatar.png",
    });
    let commit = |number: u64| {
        let sha = format!(
            "{:040x}",
            u128::from(number + 1) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835
        );
        json!({
            "id": sha, "issueKeys": ["ABC-17"], "hash": sha, "displayId": sha.get(..8),
            "message": "ABC-17 Mend the roof where the rain comes in", "flags": [], "author": author, "fileCount": 1,
            "files": [{
                "path": "house/roof.rb", "changeType": "MODIFIED", "linesAdded": 12, "linesRemoved": 3,
                "url": format!("{project}/-/blob/{sha}/house/roof.rb"),
            }],
            "authorTimestamp": "2026-11-25T12:00:00.000+00:00",
            "url": format!("{project}/-/commit/{sha}"), "updateSequenceId": sequence,
        })
    };
    let branch = |number: u64| {
        let name = format!("ABC-17-mend-the-roof-{number}");
        json!({
            "id": format!("{:064x}", number + 0xabc), "issueKeys": ["ABC-17"], "name": name,
            "lastCommit": commit(number), "url": format!("{project}/-/commits/{name}"),
            "createPullRequestUrl": format!("{project}/-/merge_requests/new?merge_request%5Bsource_branch%5D={name}"),
            "updateSequenceId": sequence,
        })
    };
    let merge_request = |number: u64| {
        json!({
            "id": (73_000 + number).to_string(), "issueKeys": ["ABC-17"],
            "displayId": format!("group/subgroup/project!{number}"), "title": "ABC-17 Mend the roof",
            "author": author, "reviewers": [{"name": "Rita Reviewer", "email": "rita@example.com", "approvalStatus": "UNAPPROVED"}],
            "commentCount": 0, "sourceBranch": format!("ABC-17-mend-the-roof-{number}"),
            "destinationBranch": "main", "lastUpdate": "2026-11-25T12:00:00.000Z", "status": "OPEN",
            "sourceBranchUrl": format!("{project}/-/commits/ABC-17-mend-the-roof-{number}"),
            "url": format!("{project}/-/merge_requests/{number}"), "updateSequenceId": sequence,
        })
    };
    let body = json!({
        "repositories": [{
            "id": "42", "name": "Project", "description": "A house", "url": project, "avatar": null,
            "updateSequenceId": sequence,
            "commits": (0..5).map(commit).collect::<Vec<_>>(),
            "branches": (0..6).map(branch).collect::<Vec<_>>(),
            "pullRequests": (0..6).map(merge_request).collect::<Vec<_>>(),
        }],
        "providerMetadata": {"product": "GitLab 17.5.1-ee"},
    });
    let body = body.to_string();
    assert!((16_000..=16_800).contains(&body.len()), "{}", body.len());
    body
}
