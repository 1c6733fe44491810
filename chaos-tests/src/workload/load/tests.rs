//! A load against our own server, well-behaved and not, and against one that lies.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use super::*;
use crate::server::identity::Identity;
use crate::server::settings::Settings;
use crate::workload::ledger::{ClientLedger, Outcome, Second};
use crate::world::until;

const PATIENCE: Duration = Duration::from_secs(30);

/// The test server on a thread of this process; it goes with the process.
fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let door = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            crate::server::accept(&listener, &Settings::default(), Identity::own()).await;
        });
    });
    door
}

/// Runs a load until it has sent so many.
fn run(config: Config, count: u64) -> ClientLedger {
    let load = Load::start(config).unwrap();
    until("the load has sent enough", PATIENCE, || {
        Ok((load.count().sent >= count).then_some(()))
    })
    .unwrap();
    load.stop().unwrap()
}

fn all_fail(path: &str, deadline: Duration, expected: impl Fn(&Outcome) -> bool) {
    let config = Config::new("web", &[server()]).path(path);
    let book = run(config.deadline(deadline), 10);
    let (count, failures) = (book.count(), &book.failures);
    assert_eq!(count.not_ok(), count.sent, "{}", book.summary());
    assert_eq!(failures.len() as u64, count.sent);
    let other = failures.iter().find(|f| !expected(&f.outcome));
    assert_eq!(other, None);
}

#[test]
fn what_is_served_well_is_ok_through_every_door() {
    let doors = [server(), server()];
    for path in ["/do", "/do?bytes=1000&delay=1ms", "/do?stream=3x1ms"] {
        let book = run(Config::new("web", &doors).rate(500.0).path(path), 300);
        let count = book.count();
        assert_eq!(count.ok, count.sent, "{path}: {:?}", book.failures.first());
        assert!(count.sent >= 300 && count.shed == 0, "{count:?}");
        assert_eq!(book.latency.len(), count.ok);
        // Both processes answered: one a door.
        assert_eq!(book.answerers.len(), 2, "{:?}", book.answerers);
        let sent = |second: &Second| second.count.sent;
        assert_eq!(book.seconds.iter().map(sent).sum::<u64>(), count.sent);
    }
}

#[test]
fn an_error_is_told_with_its_status() {
    all_fail("/do?status=503", PATIENCE, |outcome| {
        matches!(outcome, Outcome::Declared { status: 503, .. })
    });
}

#[test]
fn no_answer_and_half_an_answer_are_broken() {
    for path in ["/do?close=before", "/do?close=midway"] {
        all_fail(path, PATIENCE, |o| matches!(o, Outcome::Broken { .. }));
    }
}

#[test]
fn an_answer_after_the_deadline_is_none() {
    let short = Duration::from_millis(100);
    all_fail("/do?delay=5s", short, |o| *o == Outcome::Timeout);
}

#[test]
fn a_closed_door_is_broken() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let book = run(Config::new("web", &[closed]), 5);
    let count = book.count();
    assert_eq!(count.broken, count.sent, "{}", book.summary());
}

/// A server that gives every request the answer to the first.
#[test]
fn an_answer_to_another_request_is_crossed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let door = listener.local_addr().unwrap();
    let honest = server();
    std::thread::spawn(move || {
        let mut kept: Option<Vec<u8>> = None;
        for stream in listener.incoming().flatten() {
            let mut client = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                client.read_line(&mut head).unwrap();
            }
            let answer = kept.get_or_insert_with(|| {
                let head = head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
                let mut stream = std::net::TcpStream::connect(honest).unwrap();
                stream.write_all(head.as_bytes()).unwrap();
                let mut answer = Vec::new();
                std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
                answer
            });
            client.get_mut().write_all(answer).unwrap();
        }
    });
    let book = run(Config::new("web", &[door]).posts(0.0), 10);
    let count = book.count();
    assert_eq!((count.ok, count.crossed), (1, count.sent - 1), "{count:?}");
}

/// Nothing is read behind this door: the load stops piling up at its limit, and says so.
#[test]
fn what_is_too_much_at_once_is_shed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    let patient = Duration::from_secs(5);
    let config = Config::new("web", &[silent]).rate(50_000.0);
    let load = Load::start(config.deadline(patient)).unwrap();
    until("the load sheds", PATIENCE, || {
        Ok((load.count().shed > 0).then_some(()))
    })
    .unwrap();
    let count = load.count();
    assert!(count.sent >= MAX_UNDER_WAY as u64, "{count:?}");
    drop(listener); // Resets what waits: the end need not be waited for.
    let book = load.stop().unwrap();
    assert!(book.count().shed > 0 && book.count().ok == 0);
}
