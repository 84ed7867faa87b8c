//! The least that a relay in hyper can do: verify one token with a key made ready, sign another, pass body and answer
//! through as they come. No ids, no limits, no metrics, no log. What it costs is the floor for ours.

use std::{error::Error, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderValue, Request, Response, Uri, header, uri::Authority};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use jira_connect_proxy::clock;
use ring::hmac;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// `{"alg":"HS256","typ":"JWT"}`
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

struct Bare {
    upstream: Authority,
    key: hmac::Key,
    client: Client<HttpConnector, Incoming>,
}

#[derive(Deserialize, Serialize)]
struct Claims {
    iss: String,
    iat: i64,
    exp: i64,
    qsh: String,
}

/// Serves on a port of loopback until killed. Both sides have the same secret: the work is the same.
#[tokio::main]
pub async fn serve(port: u16, upstream: &str, secret: &str) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let bare = Arc::new(Bare {
        upstream: upstream.parse().unwrap(),
        key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
        client: Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector),
    });
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let bare = Arc::clone(&bare);
        let service = service_fn(move |request| Arc::clone(&bare).relay(request));
        tokio::spawn(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

impl Bare {
    async fn relay(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Box<dyn Error + Send + Sync>> {
        let (head, body) = request.into_parts();
        let token = head.headers.get(header::AUTHORIZATION);
        let token = token.ok_or("no token")?.to_str()?;
        let claims = self.verified(token.strip_prefix("JWT ").ok_or("another scheme")?)?;
        let mut authorization = HeaderValue::try_from(self.signed(claims)?)?;
        authorization.set_sensitive(true);
        let mut uri = head.uri.into_parts();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(self.upstream.clone());
        let mut onward = Request::new(body);
        *onward.method_mut() = head.method;
        *onward.uri_mut() = Uri::from_parts(uri)?;
        onward
            .headers_mut()
            .insert(header::AUTHORIZATION, authorization);
        if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
            onward
                .headers_mut()
                .insert(header::CONTENT_TYPE, kind.clone());
        }
        let (head, body) = self.client.request(onward).await?.into_parts();
        let mut answer = Response::new(body);
        *answer.status_mut() = head.status;
        if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
            answer
                .headers_mut()
                .insert(header::CONTENT_TYPE, kind.clone());
        }
        Ok(answer)
    }

    fn verified(&self, token: &str) -> Result<Claims, Box<dyn Error + Send + Sync>> {
        let (signed, signature) = token.rsplit_once('.').ok_or("no three parts")?;
        let signature = URL_SAFE_NO_PAD.decode(signature)?;
        hmac::verify(&self.key, signed.as_bytes(), &signature).map_err(|_| "not signed by it")?;
        let (_, claims) = signed.split_once('.').ok_or("no three parts")?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
        if claims.exp < clock::now().as_second() {
            return Err("expired".into());
        }
        Ok(claims)
    }

    fn signed(&self, mut claims: Claims) -> Result<String, Box<dyn Error + Send + Sync>> {
        claims.iat = clock::now().as_second();
        claims.exp = claims.iat + 180;
        let mut token = format!("JWT {HEADER}.");
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(&claims)?, &mut token);
        let (_, signed) = token.split_at("JWT ".len());
        let signature = hmac::sign(&self.key, signed.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}
