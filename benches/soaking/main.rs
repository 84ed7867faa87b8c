//! Minutes of mixed traffic with faults against the program as it is built for use. `benches/soak` runs it.
//!
//! Every few seconds something breaks or changes: instances die and come back, Jira throttles, fails, falls silent, or
//! takes a write and says that it did not; secrets and keys are rotated, links come and go, the configuration is read
//! again. Meanwhile instances write and ask, strangers try tokens, slow callers send a byte a second. The verdict:
//! memory, file descriptors and threads do not grow, and every write that was acknowledged has arrived.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "nothing of a program is reachable, and of the comparison's parts some are used"
)]
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "JSON is null where it holds nothing; a soak that can't go on should say where"
)]

#[path = "../../tests/fakes/mod.rs"]
mod fakes;
#[path = "../comparison/load.rs"]
mod load;
#[path = "../comparison/process.rs"]
mod process;
#[path = "../comparison/stage.rs"]
mod stage;
mod traffic;
mod watch;
mod world;

use std::{process::ExitCode, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use traffic::Traffic;
use watch::Watch;
use world::World;

/// Between two faults.
const FAULT_EVERY: Duration = Duration::from_secs(5);

/// For what waits to get through, once everything is well.
const DRAIN: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [run, minutes, ..] if run == "run" => soak(Duration::from_secs_f64(
            minutes.parse::<f64>().unwrap() * 60.0,
        )),
        _ => {
            println!("soak: takes 20 minutes; benches/soak runs it");
            ExitCode::SUCCESS
        }
    }
}

#[tokio::main]
async fn soak(length: Duration) -> ExitCode {
    let folder = tempfile::tempdir().unwrap();
    let world = Arc::new(World::set(folder.path()).await);
    let process = world.relay.start();
    world.link_others().await;
    let traffic = Traffic::start(&world);
    let watch = Watch::start(process.id(), length);
    let end = Instant::now() + length;
    let (mut faults, mut waited) = (0, 0);
    while Instant::now() + FAULT_EVERY < end {
        world.spoil(faults, &process).await;
        faults += 1;
        // By itself the queue would grow from round to round, because pauses do, and a longer queue takes more memory:
        // what waits is sent again after every fault.
        waited = world.retry().await.max(waited);
        sleep(FAULT_EVERY).await;
    }
    sleep_until(end).await;
    let samples = watch.end().await;

    world.mend().await;
    let done = traffic.end().await;
    let deadline = Instant::now() + DRAIN;
    let mut rest = world.unsettled(&done).await;
    while !rest.is_empty() && Instant::now() < deadline {
        world.hurry().await;
        sleep(Duration::from_millis(500)).await;
        rest = world.unsettled(&done).await;
    }
    process.stop("TERM");

    println!(
        "{faults} faults in {:.0} minutes\n",
        length.as_secs_f64() / 60.0
    );
    done.show();
    println!("  {:<44}{waited:>9}", "waited for Jira at once, at most");
    let again = world.site.marks().into_values().filter(|times| *times > 1);
    println!(
        "  {:<44}{:>9}",
        "arrived again (its answer was lost)",
        again.count()
    );
    let flat = samples.show();
    println!();
    for what in rest.iter().take(20) {
        println!("  {what}");
    }
    let whole = rest.is_empty() && done.acknowledged() > 0;
    let word = |good: bool| if good { "yes" } else { "NO" };
    println!(
        "nothing acknowledged is lost, and every link agrees: {}",
        word(whole)
    );
    println!("memory, descriptors and threads are flat: {}", word(flat));
    if whole && flat {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
