use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("second")
}

fn request(traces: &Traces, n: u128, hop: Hop, shelf: Shelf) {
    let id = Uuid::from_u128(n);
    let subject = Subject::Request {
        listener: "public",
        route: "rest/devinfo",
        method: "POST",
        peer: Peer::Socket("192.0.2.7:1".parse().expect("peer")),
    };
    let now = at(i64::try_from(n).expect("second"));
    let trace = traces.begin(id, Context::new(id), subject, now);
    traces.end(trace, shelf, hop);
}

fn failed(code: &'static str) -> Hop {
    Hop::Answered(
        401,
        Some(Box::new(Fault {
            code,
            ..Fault::default()
        })),
    )
}

#[test]
fn the_room_is_bounded_and_the_reach_is_told() {
    let traces = Traces::new(64 * 1024, None, at(0));
    for n in 1..=10_000 {
        request(&traces, n, Hop::Answered(200, None), Shelf::Routine);
    }
    let (room, kept) = traces.shelf(Shelf::Routine);
    let (bytes, count) = {
        let kept = lock(kept);
        (kept.bytes, kept.traces.len())
    };
    assert!(bytes <= room && count > 10, "{count} in {bytes} of {room}");
    assert!(traces.find(Uuid::from_u128(1)).is_none());
    assert!(traces.find(Uuid::from_u128(10_000)).is_some());
    let first_kept = 10_000 - i64::try_from(count).expect("count");
    assert_eq!(traces.reach()["routine"], at(first_kept).to_string());
    assert_eq!(traces.reach()["notable"], at(0).to_string());
}

#[test]
fn strangers_push_out_strangers_only() {
    let traces = Traces::new(64 * 1024, None, at(0));
    request(&traces, 1, failed("spool_full"), Shelf::Notable);
    for n in 2..=1000 {
        request(&traces, n, failed("token_missing"), Shelf::Strangers);
    }
    assert!(traces.find(Uuid::from_u128(1)).is_some());
    let faults = traces.faults();
    let codes: Vec<_> = faults.iter().map(|fault| fault["code"].clone()).collect();
    assert_eq!(codes, ["token_missing", "spool_full"]);
    assert!(faults[0]["times"].as_u64() > Some(1), "{faults:#?}");
    assert_eq!(faults[1]["id"], "00000000000000000000000000000001");
}

#[test]
fn a_trace_holds_so_many_hops_and_its_end() {
    let traces = Traces::new(1024 * 1024, None, at(0));
    let id = Uuid::from_u128(5);
    let subject = Subject::Request {
        listener: "public",
        route: "rest/devinfo",
        method: "POST",
        peer: Peer::Socket("192.0.2.7:1".parse().expect("peer")),
    };
    let trace = traces.begin(id, Context::new(id), subject, at(5));
    for _ in 0..HOPS_MAX + 3 {
        trace.note(Hop::Kept);
    }
    traces.end(Arc::clone(&trace), Shelf::Routine, Hop::Answered(202, None));
    trace.note(Hop::Kept);
    let found = traces.find(id).expect("remembered");
    let part = &found["parts"][0];
    assert_eq!(part["hops"].as_array().map(Vec::len), Some(HOPS_MAX + 1));
    assert_eq!(part["hops_left_out"], 3);
    assert_eq!(part["hops"][HOPS_MAX]["status"], 202);
}

#[test]
fn without_room_nothing_is_remembered() {
    let traces = Traces::new(0, None, at(0));
    request(&traces, 1, failed("internal_error"), Shelf::Notable);
    assert!(traces.find(Uuid::from_u128(1)).is_none());
    assert_eq!(traces.faults(), Vec::<Value>::new());
}
