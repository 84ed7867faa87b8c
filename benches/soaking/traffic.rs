//! What is asked of the relay all the time, and what was promised for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    fakes::{
        http::{client, try_send},
        instance::token,
        site::{marked_build, marked_push},
    },
    world::{INSTANCES, World},
};
use jira_connect_proxy::client::Client;
use serde_json::Value;

const WRITERS_PER_INSTANCE: usize = 4;
const PAUSE: Duration = Duration::from_millis(100);
const USER: &str = "/rest/api/3/user?accountId=557058%3A5b10&expand=groups";

pub struct Traffic {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
    done: Arc<Done>,
}

/// What came of it.
#[derive(Default)]
pub struct Done {
    acknowledged: Mutex<BTreeSet<String>>,
    /// By what was asked and how it was answered.
    answers: Mutex<BTreeMap<(&'static str, String), u64>>,
    number: AtomicU64,
}

impl Traffic {
    pub fn start(world: &Arc<World>) -> Self {
        let mut traffic = Self {
            stop: Arc::default(),
            tasks: JoinSet::new(),
            done: Arc::default(),
        };
        for instance in 0..INSTANCES {
            for _ in 0..WRITERS_PER_INSTANCE {
                traffic.repeat(world, PAUSE, move |world, client, done| async move {
                    write(&world, instance, &client, &done).await;
                });
            }
            traffic.repeat(world, PAUSE, move |world, client, done| async move {
                let answer = signed(&world, instance, &client, "GET", USER, String::new()).await;
                done.count("GET of a user", answer);
            });
        }
        for _ in 0..2 {
            // A new connection each time, as strangers come.
            traffic.repeat(world, PAUSE, |world, _, done| async move {
                let token = token(
                    "a-secret-that-nobody-has-given-away",
                    "GET",
                    USER,
                    Value::Null,
                );
                let answer = call(&world, &client(), "GET", USER, &token, String::new()).await;
                done.count("bad token", answer);
            });
        }
        for _ in 0..20 {
            traffic.repeat(world, PAUSE, |world, _, done| async move {
                done.count("a byte a second", slow(&world).await);
            });
        }
        traffic.repeat(
            world,
            Duration::from_secs(5),
            |world, client, done| async move {
                let url = format!("http://127.0.0.1:{}/metrics", world.relay.admin_port);
                let request = Request::get(url).body(Full::default()).unwrap();
                let answer = try_send(&client, request).await;
                done.count("scrape", answer.map(|answer| answer.status().as_u16()));
            },
        );
        traffic
    }

    /// Does something again and again, each time but the first on the same connections.
    fn repeat<F, D>(&mut self, world: &Arc<World>, pause: Duration, what: F)
    where
        F: Fn(Arc<World>, Client, Arc<Done>) -> D + Send + 'static,
        D: Future<Output = ()> + Send,
    {
        let (world, done) = (Arc::clone(world), Arc::clone(&self.done));
        let stop = Arc::clone(&self.stop);
        let client = client();
        self.tasks.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                what(Arc::clone(&world), client.clone(), Arc::clone(&done)).await;
                sleep(pause).await;
            }
        });
    }

    /// Waits until everything under way has its answer.
    pub async fn end(mut self) -> Arc<Done> {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.done
    }
}

impl Done {
    pub fn marks(&self) -> impl Iterator<Item = String> {
        self.acknowledged.lock().unwrap().clone().into_iter()
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    pub fn show(&self) {
        for ((what, how), times) in self.answers.lock().unwrap().iter() {
            println!("  {:<44}{times:>9}", format!("{what}: {how}"));
        }
        let acknowledged = self.acknowledged();
        println!("  {:<44}{acknowledged:>9}", "writes acknowledged");
    }

    fn count(&self, what: &'static str, status: Option<u16>) {
        let how = status.map_or_else(|| "closed".to_owned(), |status| status.to_string());
        let mut answers = self.answers.lock().unwrap();
        *answers.entry((what, how)).or_default() += 1;
    }
}

async fn write(world: &World, instance: usize, client: &Client, done: &Done) {
    let number = done.number.fetch_add(1, Ordering::SeqCst);
    let mark = format!("write {number}");
    let (path, body) = if number.is_multiple_of(3) {
        marked_build(&mark, number)
    } else {
        marked_push(&mark, number)
    };
    let answer = signed(world, instance, client, "POST", path, body.to_string()).await;
    if matches!(answer, Some(200 | 202)) {
        done.acknowledged.lock().unwrap().insert(mark);
    }
    done.count("write", answer);
}

async fn signed(
    world: &World,
    instance: usize,
    client: &Client,
    method: &str,
    path: &str,
    body: String,
) -> Option<u16> {
    let secret = world.secret_of(instance).await?;
    let token = token(&secret, method, path, Value::Null);
    call(world, client, method, path, &token, body).await
}

async fn call(
    world: &World,
    client: &Client,
    method: &str,
    path: &str,
    token: &str,
    body: String,
) -> Option<u16> {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://127.0.0.1:{}{path}", world.relay.port))
        .header("authorization", format!("JWT {token}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let answer = try_send(client, request).await?;
    Some(answer.status().as_u16())
}

/// Sends headers without end, a byte a second; the relay must lose patience.
async fn slow(world: &World) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", world.relay.port))
        .await
        .ok()?;
    let begun = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nx-slow: ").await.ok()?;
    let mut head = [0; 12];
    while begun.elapsed() < Duration::from_secs(60) {
        if let Ok(read) = timeout(Duration::from_secs(1), stream.read_exact(&mut head)).await {
            read.ok()?;
            return std::str::from_utf8(head.get(9..)?).ok()?.parse().ok();
        }
        stream.write_all(b"x").await.ok()?;
    }
    // Nobody else ends like this.
    Some(0)
}
