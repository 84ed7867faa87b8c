use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use rustls::RootCertStore;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::*;
use crate::{client::DialSettings, domain::CloudId, jwt::crypto};

const SECRET: &str = "ATOAsecret-of-the-credentials";

/// A token endpoint over a real socket, and what asks it.
struct Stage {
    tokens: Tokens,
    endpoint: Arc<Endpoint>,
}

struct Endpoint {
    /// Requests that came.
    asked: AtomicUsize,
    /// Status line, more headers, body.
    answer: Mutex<(u16, String, String)>,
    /// One permit for each answer that may be given.
    answers: Semaphore,
    requests: Mutex<Vec<String>>,
}

impl Stage {
    async fn set() -> Self {
        Self::set_with(Duration::from_secs(20)).await
    }

    async fn set_with(timeout: Duration) -> Self {
        crypto::install();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let endpoint = Arc::new(Endpoint {
            asked: AtomicUsize::new(0),
            answer: Mutex::new((200, String::new(), granted("token-1", 900))),
            answers: Semaphore::new(1000),
            requests: Mutex::default(),
        });
        let serving = Arc::clone(&endpoint);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let endpoint = Arc::clone(&serving);
                tokio::spawn(async move { endpoint.serve(stream).await });
            }
        });
        let client = Client::new(&DialSettings {
            roots: Arc::new(RootCertStore::empty()),
            connect_timeout: Duration::from_secs(20),
            allow_private: false,
        });
        let api_url = JiraApiUrl::parse(&format!("http://{address}")).expect("url");
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        Self {
            tokens: Tokens::new(client, &api_url, timeout, metrics),
            endpoint,
        }
    }

    async fn get(&self, second: i64) -> Result<String, &'static str> {
        let token = self.tokens.get(&site(), &oauth(SECRET), at(second)).await;
        token
            .map(|token| text(&token))
            .map_err(|error| error.code())
    }

    fn answers(&self, status: u16, headers: &str, body: impl Into<String>) {
        let mut answer = self.endpoint.answer.lock().expect("answer");
        *answer = (status, headers.to_owned(), body.into());
    }

    fn grants(&self, token: &str, secs: u32) {
        self.answers(200, "", granted(token, secs));
    }

    fn asked(&self) -> usize {
        self.endpoint.asked.load(Ordering::SeqCst)
    }

    fn trouble_since(&self, oauth: &Oauth) -> Option<Timestamp> {
        let trouble = self.tokens.trouble(&site(), oauth)?;
        Some(trouble.since)
    }
}

impl Endpoint {
    async fn serve(&self, mut stream: TcpStream) {
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            let mut part = [0; 1024];
            match stream.read(&mut part).await {
                Ok(length) if length > 0 => request.extend_from_slice(&part[..length]),
                _ => return,
            }
        }
        let request = String::from_utf8(request).expect("text");
        self.requests.lock().expect("requests").push(request);
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.answers.acquire().await.expect("open").forget();
        let (status, headers, body) = self.answer.lock().expect("answer").clone();
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status} x\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

fn granted(token: &str, secs: u32) -> String {
    serde_json::json!({"access_token": token, "expires_in": secs, "token_type": "Bearer"})
        .to_string()
}

fn site() -> ClientKey {
    ClientKey::parse("tenant").expect("key")
}

fn oauth(secret: &str) -> Oauth {
    Oauth {
        client_id: "client".to_owned(),
        client_secret: Credential::parse(secret).expect("secret"),
        cloud_id: CloudId::parse("4c822e2f-510f-48b9-b8d2-8419d0932949").expect("id"),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("time")
}

fn text(token: &Token) -> String {
    let text = token.authorization.to_str().expect("text");
    text.strip_prefix("Bearer ").expect("bearer").to_owned()
}

#[tokio::test]
async fn a_token_is_asked_for_as_the_documents_say_and_replaced_ahead_of_its_end() {
    let stage = Stage::set().await;
    for second in [0, 1, 779] {
        assert_eq!(stage.get(second).await.as_deref(), Ok("token-1"));
    }
    assert_eq!(stage.asked(), 1);
    let request = stage.endpoint.requests.lock().expect("requests")[0].clone();
    let (head, body) = request.split_once("\r\n\r\n").expect("a body");
    assert!(head.starts_with("POST /oauth/token HTTP/1.1"), "{head}");
    let head = head.to_lowercase();
    assert!(head.contains("content-type: application/json"), "{head}");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(body).expect("JSON"),
        serde_json::json!({
            "audience": "api.atlassian.com", "grant_type": "client_credentials",
            "client_id": "client", "client_secret": SECRET,
        })
    );

    stage.grants("token-2", 60);
    assert_eq!(stage.get(780).await.as_deref(), Ok("token-2"));
    // A short life is not used up by haste: a quarter of it is left.
    assert_eq!(stage.get(780 + 44).await.as_deref(), Ok("token-2"));
    stage.grants("token-3", 900);
    assert_eq!(stage.get(780 + 45).await.as_deref(), Ok("token-3"));
    assert_eq!(stage.asked(), 3);
}

#[test]
fn the_question_stays_in_one_buffer_whatever_is_in_it() {
    let mut oauth = oauth(&"\"".repeat(Credential::MAX_BYTES));
    oauth.client_id = "\u{1}".repeat(300);
    let question = Question::about(&oauth);
    let room = 256 + 6 * (300 + Credential::MAX_BYTES);
    let json = question.to_json().expect("JSON");
    assert!(json.len() <= room, "it need not grow");
    let read: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(read["client_secret"], oauth.client_secret.expose());
    assert_eq!(read["client_id"], oauth.client_id.as_str());
}

/// Has a hundred callers wait for the one that asks.
async fn hundred(stage: &Stage) -> Vec<Result<String, &'static str>> {
    stage.endpoint.answers.forget_permits(1000);
    let callers = join_all((0..100).map(|_| stage.get(0)));
    // Polled second: by then all of them wait.
    let answering = async {
        while stage.asked() == 0 {
            tokio::task::yield_now().await;
        }
        stage.endpoint.answers.add_permits(1000);
    };
    tokio::join!(callers, answering).0
}

#[tokio::test]
async fn of_a_hundred_callers_one_asks() {
    let stage = Stage::set().await;
    let tokens = hundred(&stage).await;
    assert!(tokens.iter().all(|token| token.as_deref() == Ok("token-1")));
    assert_eq!(stage.asked(), 1);
}

#[tokio::test]
async fn a_failure_is_remembered_for_two_seconds_by_everybody() {
    let stage = Stage::set().await;
    stage.answers(503, "", "");
    let tokens = hundred(&stage).await;
    let failed = Err("token_unavailable".to_owned());
    assert!(
        tokens
            .into_iter()
            .all(|token| token.map_err(str::to_owned) == failed)
    );
    assert_eq!(stage.get(1).await, Err("token_unavailable"));
    assert_eq!(stage.asked(), 1);
    stage.grants("token-1", 900);
    // From the end of what failed on, and that took some time.
    assert_eq!(stage.get(60).await.as_deref(), Ok("token-1"));
    assert_eq!(stage.asked(), 2);
}

#[tokio::test]
async fn whoever_came_while_a_fetch_got_no_answer_does_not_wait_for_another() {
    let patience = Duration::from_millis(200);
    let stage = Stage::set_with(patience).await;
    stage.endpoint.answers.forget_permits(1000);
    assert_eq!(stage.get(0).await, Err("token_unavailable"));
    // More than two seconds after the question, less than two after its end.
    let later = at(2).saturating_add(SignedDuration::from_millis(100));
    let later = later.expect("time");
    let token = stage.tokens.get(&site(), &oauth(SECRET), later).await;
    assert_eq!(token.err().map(|e| e.code()), Some("token_unavailable"));
    assert_eq!(stage.asked(), 1);

    // Nor for ever, if others before them ask and hang up.
    let known = stage.tokens.site(&site(), &oauth(SECRET));
    let asking = known.fetching.lock().await;
    assert_eq!(stage.get(10).await, Err("token_unavailable"));
    assert_eq!(stage.asked(), 1);
    drop(asking);
}

#[tokio::test]
async fn a_known_token_serves_while_its_renewal_fails_or_takes_its_time() {
    let stage = Stage::set().await;
    assert!(stage.get(0).await.is_ok());
    stage.answers(500, "", "");
    assert_eq!(stage.get(780).await.as_deref(), Ok("token-1"));
    assert_eq!(stage.asked(), 2);
    assert_eq!(stage.trouble_since(&oauth(SECRET)), None, "not yet");

    // Somebody renews it; nobody else waits for that.
    stage.endpoint.answers.forget_permits(1000);
    stage.grants("token-2", 900);
    let renewing = stage.get(800);
    let others = async {
        while stage.asked() < 3 {
            tokio::task::yield_now().await;
        }
        let other = stage.get(800).await;
        stage.endpoint.answers.add_permits(1000);
        other
    };
    let (renewed, other) = tokio::join!(renewing, others);
    assert_eq!(renewed.as_deref(), Ok("token-2"));
    assert_eq!(other.as_deref(), Ok("token-1"));

    stage.answers(500, "", "");
    assert_eq!(stage.get(1699).await.as_deref(), Ok("token-2"));
    assert_eq!(stage.get(1702).await, Err("token_unavailable"));
}

#[tokio::test]
async fn an_endpoint_that_wants_to_be_left_alone_is_for_a_minute_at_most() {
    let stage = Stage::set().await;
    assert!(stage.get(0).await.is_ok());
    for (at, wanted, pause) in [(780, 30, 30), (811, 3600, 60)] {
        stage.answers(429, &format!("retry-after: {wanted}\r\n"), "");
        assert_eq!(stage.get(at).await.as_deref(), Ok("token-1"));
        let asked = stage.asked();
        assert_eq!(stage.get(at + pause - 1).await.as_deref(), Ok("token-1"));
        assert_eq!(stage.asked(), asked, "Retry-After: {wanted}");
    }
    stage.grants("token-2", 900);
    assert_eq!(stage.get(872).await.as_deref(), Ok("token-2"));
}

#[tokio::test]
async fn a_token_that_jira_does_not_take_is_dropped_once() {
    let stage = Stage::set().await;
    let (site, oauth) = (site(), oauth(SECRET));
    let first = stage.tokens.get(&site, &oauth, at(0)).await.expect("token");
    stage.grants("token-2", 900);
    stage.tokens.drop_token(&site, &first);
    assert_eq!(stage.get(1).await.as_deref(), Ok("token-2"));
    // Others hear later that the first one was refused; that says nothing about the second.
    stage.tokens.drop_token(&site, &first);
    stage.grants("token-3", 900);
    assert_eq!(stage.get(2).await.as_deref(), Ok("token-2"));
    assert_eq!(stage.asked(), 2);
}

#[tokio::test]
async fn other_credentials_get_another_token_at_once() {
    let stage = Stage::set().await;
    stage.answers(
        401,
        "",
        r#"{"error":"access_denied","error_description":"Unauthorized"}"#,
    );
    assert_eq!(stage.get(0).await, Err("credentials_refused"));
    assert_eq!(stage.get(3).await, Err("credentials_refused"));
    assert_eq!(stage.trouble_since(&oauth(SECRET)), Some(at(0)));

    stage.grants("token-2", 900);
    let others = oauth("others");
    assert_eq!(stage.trouble_since(&others), None, "nobody has tried these");
    let token = stage.tokens.get(&site(), &others, at(3)).await;
    assert_eq!(text(&token.expect("token")), "token-2");
    assert_eq!(stage.trouble_since(&others), None);
    assert_eq!(stage.asked(), 3);
}

#[tokio::test]
async fn each_failure_says_what_it_is() {
    let stage = Stage::set_with(Duration::from_millis(200)).await;
    let failure = async || {
        let fetched = stage.tokens.fetch(&oauth(SECRET), at(0)).await;
        fetched.err().expect("no token")
    };
    let told = format!(r#"{{"error":"access_denied","error_description":"not {SECRET}"}}"#);
    stage.answers(401, "", told);
    let text = failure().await.to_string();
    assert!(
        text.contains("401") && text.contains("access_denied, not ***"),
        "{text}"
    );

    stage.answers(429, "retry-after: 7\r\n", "");
    let error = failure().await;
    let wanted = Some(Duration::from_secs(7));
    assert!(
        matches!(error, TokenError::NotNow { retry_after, .. } if retry_after == wanted),
        "{error:?}"
    );
    for body in ["<html>", "{}", r#"{"access_token":"two words"}"#] {
        stage.answers(200, "", body);
        assert!(matches!(failure().await, TokenError::Silent(_)), "{body}");
    }
    stage.answers(302, "location: https://evil.example/\r\n", "");
    assert!(matches!(failure().await, TokenError::NotNow { .. }));
    stage.endpoint.answers.forget_permits(1000);
    let error = failure().await;
    assert!(error.to_string().contains("no answer within"), "{error}");
}
