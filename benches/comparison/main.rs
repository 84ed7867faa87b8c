//! What a whole request costs: CPU time of the proxy's process per request, ours beside plain nginx and a bare hyper
//! relay, in one run on one machine. `benches/compare` runs it.
//!
//! Times are noisy, so nginx is also compared with itself, and where that is off the run says that it can't tell.
//! The count of system calls is not noisy: it is the gate, and alone decides the exit code.

#![allow(unreachable_pub, reason = "nothing of a program is reachable")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that can't run should say where"
)]

mod bare;
#[path = "../../tests/fakes/mod.rs"]
mod fakes;
mod load;
mod process;
mod stage;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use load::{Seen, Traffic};
use process::{Cores, Process, SystemCalls};
use stage::{Places, Relay};

const ROUNDS: usize = 5;
const SECONDS: u32 = 3;
const IDLE_CONNECTIONS: usize = 2000;

/// More than this off 1.00, and nginx against itself says that the machine has no quiet moment.
const NOISE_MAX: f64 = 0.07;

const PROFILE_LINES: usize = 140;
const SYSTEM_CALLS_MAX: f64 = 4.5;
const P99_MAX: f64 = 1.5;
const IDLE_KIB_MAX: f64 = 12.0;
const START_MIB_MAX: f64 = 20.0;

/// How to run.
struct Wishes {
    /// One core for the proxy, one for the load; else all for all.
    pinned: bool,
    /// Say where the time of the relay and of the bare one goes.
    profile: bool,
    /// Shorter, to try a change out.
    quick: bool,
}

/// One proxy under load.
struct Proxy<'a> {
    name: &'static str,
    process: &'a Process,
    port: u16,
}

/// One round of one proxy.
#[derive(Clone, Copy)]
struct Round {
    user_us: f64,
    system_us: f64,
    seen: Seen,
}

impl Round {
    fn cpu_us(&self) -> f64 {
        self.user_us + self.system_us
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments.as_slice() {
        ["bare", port, upstream, secret] => {
            bare::serve(port.parse().unwrap(), upstream, secret);
            ExitCode::SUCCESS
        }
        ["run", ..] => compare(Wishes {
            pinned: arguments.contains(&"pinned"),
            profile: arguments.contains(&"profile"),
            quick: arguments.contains(&"quick"),
        }),
        _ => {
            println!(
                "compare: needs nginx and wrk and takes minutes; benches/compare sees to that"
            );
            ExitCode::SUCCESS
        }
    }
}

#[tokio::main]
async fn compare(wishes: Wishes) -> ExitCode {
    let places = if wishes.pinned {
        Places {
            proxy: Cores::First,
            load: Cores::Second,
        }
    } else {
        Places {
            proxy: Cores::All,
            load: Cores::All,
        }
    };
    let (rounds, seconds) = if wishes.quick {
        (3, 2)
    } else {
        (ROUNDS, SECONDS)
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let upstream = stage::upstream(folder, places);
    let nginx = stage::plain_nginx(folder, places, &upstream);
    let site = format!("http://127.0.0.1:{}", upstream.port);
    let relay = Relay::set_up(folder, places, &site).await;
    let bare = stage::bare(folder, places, &upstream, &relay.secret);
    let traffic = stage::traffic(&relay.secret);
    let cores = if wishes.pinned {
        "one core"
    } else {
        "all cores"
    };
    println!("{cores} for each proxy, 64 connections, medians of {rounds} rounds of {seconds} s");

    let at_start = relay.resident_kib_at_start as f64 / 1024.0;
    println!("\nmemory");
    println!("  relay at start          {at_start:6.1} MiB       (target {START_MIB_MAX})");
    let per_connection = |name: &str, traffic: &Traffic, process: &Process, port: u16| {
        // What it takes once, for whatever number of connections, is not theirs.
        drop(traffic.idle(port, 64));
        let before = process.resident_kib();
        let open = traffic.idle(port, IDLE_CONNECTIONS);
        std::thread::sleep(Duration::from_millis(500));
        let grown = process.resident_kib().saturating_sub(before);
        let each = grown as f64 / open.len() as f64;
        println!(
            "  {name:6} per connection after a {:4} {each:6.1} KiB",
            traffic.method
        );
        each
    };
    let mut idle = Vec::new();
    for traffic in &traffic {
        let process = relay.start();
        idle.push(per_connection("relay", traffic, &process, relay.port));
        process.stop("TERM");
    }
    println!("  (target {IDLE_KIB_MAX} KiB)");
    // Of processes that had other connections before, so only where to look for the order of things.
    per_connection("bare", &traffic[0], &bare.process, bare.port);
    per_connection("nginx", &traffic[0], &nginx.process, nginx.port);

    let ours = relay.start();
    let proxies = [
        Proxy {
            name: "nginx",
            process: &nginx.process,
            port: nginx.port,
        },
        Proxy {
            name: "bare relay",
            process: &bare.process,
            port: bare.port,
        },
        Proxy {
            name: "relay",
            process: &ours,
            port: relay.port,
        },
        Proxy {
            name: "nginx again",
            process: &nginx.process,
            port: nginx.port,
        },
    ];
    let mut within = true;
    for traffic in &traffic {
        within &= judge(
            traffic,
            &proxies,
            (rounds, seconds),
            places,
            folder,
            &relay.log(),
        );
        if wishes.profile {
            // What ours needs above the bare one is the difference of the two.
            for proxy in &proxies[1..3] {
                say_where_time_goes(traffic, proxy, places, folder);
            }
        }
    }
    if within {
        ExitCode::SUCCESS
    } else {
        println!("\nmore system calls per request than {SYSTEM_CALLS_MAX}");
        ExitCode::FAILURE
    }
}

/// Measures all proxies in turns, prints a table, and says whether ours keeps within its system calls.
fn judge(
    traffic: &Traffic,
    proxies: &[Proxy<'_>; 4],
    (rounds_wanted, seconds): (usize, u32),
    places: Places,
    folder: &Path,
    log: &Path,
) -> bool {
    let mut rounds: [Vec<Round>; 4] = Default::default();
    for proxy in proxies.iter().take(3) {
        traffic.run(proxy.port, 1, places.load, folder);
    }
    for _ in 0..rounds_wanted {
        for (proxy, rounds) in proxies.iter().zip(&mut rounds) {
            let before = proxy.process.cpu();
            let seen = traffic.run(proxy.port, seconds, places.load, folder);
            let after = proxy.process.cpu();
            let each = |time: Duration| time.as_secs_f64() * 1e6 / seen.requests as f64;
            rounds.push(Round {
                user_us: each(after.user - before.user),
                system_us: each(after.system - before.system),
                seen,
            });
        }
        // It writes at the end, wherever that is.
        fs::File::options()
            .write(true)
            .open(log)
            .unwrap()
            .set_len(0)
            .unwrap();
    }
    println!("\n{}", traffic.name);
    println!(
        "  {:<12}{:>11}{:>11}{:>20}{:>12}{:>9}{:>9}{:>14}",
        "",
        "us/request",
        "in kernel",
        "x nginx (range)",
        "requests/s",
        "p99 ms",
        "x nginx",
        "system calls"
    );
    let mut summary = Vec::new();
    for (proxy, own) in proxies.iter().zip(&rounds) {
        let ratios = |of: fn(&Round) -> f64| -> Vec<f64> {
            let [nginx, ..] = &rounds;
            let pairs = own.iter().zip(nginx);
            pairs.map(|(own, nginx)| of(own) / of(nginx)).collect()
        };
        let cpu = ratios(Round::cpu_us);
        let p99 = median(ratios(|round| round.seen.p99.as_secs_f64()));
        let lowest = cpu.iter().copied().fold(f64::MAX, f64::min);
        let highest = cpu.iter().copied().fold(f64::MIN, f64::max);
        let cpu = median(cpu);
        let range = format!("{cpu:.2} ({lowest:.2}-{highest:.2})");
        let of = |of: fn(&Round) -> f64| median(own.iter().map(of).collect());
        let calls = counted(traffic, proxy, places, folder);
        println!(
            "  {:<12}{:>11.1}{:>11.1}{range:>20}{:>12.0}{:>9.2}{p99:>9.2}{:>14.2}",
            proxy.name,
            of(Round::cpu_us),
            of(|round| round.system_us),
            of(|round| round.seen.per_second),
            of(|round| round.seen.p99.as_secs_f64() * 1e3),
            calls.0,
        );
        summary.push((cpu, p99, calls));
    }
    let [_, bare, ours, again] = summary.as_slice() else {
        unreachable!("four proxies")
    };
    println!(
        "  {:<12}{:>11}{:>11}{:>20.2}{:>12}{:>9}{P99_MAX:>9.2}{SYSTEM_CALLS_MAX:>14.2}",
        "target", "", "", traffic.target, "", ""
    );
    let off = (again.0 - 1.0).abs();
    let verdict = |met: bool| if met { "met" } else { "missed" };
    if off > NOISE_MAX {
        println!("  nginx is {off:.2} off itself: this run can't tell times apart");
    } else {
        println!(
            "  CPU {}, p99 {} (nginx is {off:.2} off itself; the bare relay needs {:.2})",
            verdict(ours.0 <= traffic.target),
            verdict(ours.1 <= P99_MAX),
            bare.0
        );
    }
    println!("  the relay's system calls: {}", ours.2.1);
    println!("  the bare relay's: {}", bare.2.1);
    ours.2.0 <= SYSTEM_CALLS_MAX
}

/// System calls per request, in all and the most frequent ones.
fn counted(traffic: &Traffic, proxy: &Proxy<'_>, places: Places, folder: &Path) -> (f64, String) {
    let mut requests = 0;
    let calls: SystemCalls = proxy.process.system_calls(folder, || {
        requests = traffic.run(proxy.port, 2, places.load, folder).requests;
    });
    let each = |calls: u64| calls as f64 / requests as f64;
    let often = calls
        .by_name
        .iter()
        .filter(|(_, calls)| each(*calls) >= 0.005);
    let often: Vec<String> = often
        .map(|(name, calls)| format!("{name} {:.2}", each(*calls)))
        .collect();
    (each(calls.total), often.join(", "))
}

/// Samples of the whole process, by function: its own time, and with what it calls.
fn say_where_time_goes(traffic: &Traffic, proxy: &Proxy<'_>, places: Places, folder: &Path) {
    let data = folder.join("perf.data");
    let recording = Command::new("perf")
        .args(["record", "-q", "-e", "cpu-clock", "-F", "499"])
        .args(["--call-graph", "dwarf,16384", "-p"])
        .arg(proxy.process.id().to_string())
        .arg("-o")
        .arg(&data)
        .args(["--", "sleep", "4"])
        .spawn();
    let Ok(mut recording) = recording else {
        println!("  no profile: perf does not start");
        return;
    };
    traffic.run(proxy.port, 5, places.load, folder);
    recording.wait().unwrap();
    for (what, order) in [
        ("by itself", "--no-children"),
        ("with what it calls", "--children"),
    ] {
        let report = Command::new("perf")
            .args(["report", "--stdio", "-q", "--no-inline", order])
            .args(["-g", "none", "--sort", "symbol", "-i"])
            .arg(&data)
            .output()
            .unwrap();
        println!(
            "\n  where the time of the {} goes, in % of its samples, {what}",
            proxy.name
        );
        let report = String::from_utf8_lossy(&report.stdout).into_owned();
        let lines = report.lines().filter(|line| line.contains('%'));
        for line in lines.take(PROFILE_LINES) {
            let line: String = line
                .trim_end_matches([' ', '-'])
                .chars()
                .take(150)
                .collect();
            println!("  {line}");
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
