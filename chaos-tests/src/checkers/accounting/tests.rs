//! A clean pair of books passes; each planted contradiction is found, and by its own words.

use std::time::Duration;

use super::*;
use crate::server::identity::Identity;
use crate::workload::ledger::{Failure, Outcome};

/// Two books that are being written.
struct Books {
    client: ClientLedger,
    backend: BackendLedger,
}

fn identity(instance: &str) -> Identity {
    let service = instance.split('-').next().unwrap();
    Identity {
        service: service.to_owned(),
        revision: format!("{service}-00001"),
        instance: instance.to_owned(),
        process: format!("process of {instance}"),
    }
}

impl Books {
    /// GETs and POSTs in turn, each served well by one of two instances.
    fn clean() -> Self {
        let mut books = Self {
            client: ClientLedger::new(1, "web.example", 1).unwrap(),
            backend: BackendLedger::default(),
        };
        for number in 0..20 {
            let method = [Method::Get, Method::Post][number % 2];
            let instance = ["web-a", "web-b"][number / 2 % 2];
            let id = books.send(method);
            books.serve(id, method, instance);
            books.hear(id, method, ok(instance));
        }
        books
    }

    fn send(&mut self, method: Method) -> LoadId {
        self.client.send(method, Duration::from_secs(1))
    }

    fn serve(&mut self, id: LoadId, method: Method, instance: &str) {
        let server = self.backend.server(&Server {
            namespace: "default".to_owned(),
            service: identity(instance).service,
            instance: instance.to_owned(),
        });
        self.backend.serve(id, Served { method, server });
    }

    fn hear(&mut self, id: LoadId, method: Method, outcome: Outcome) {
        self.client.settle(Failure {
            id,
            method,
            door: 0,
            at: Duration::from_secs(1),
            took: Duration::from_millis(1),
            outcome,
        });
    }

    /// One request more, which ends like this and was never served.
    fn fails(&mut self, outcome: Outcome) {
        let id = self.send(Method::Get);
        self.hear(id, Method::Get, outcome);
    }

    fn check(&self, rules: &Rules) -> Vec<String> {
        check(&self.client, &self.backend, rules)
    }

    /// The one finding.
    fn finds(&self, words: &str) {
        for rules in [Rules::strict("web"), Rules::broken("web")] {
            let found = self.check(&rules);
            assert!(found.len() == 1 && found[0].contains(words), "{found:?}");
        }
    }

    /// Found when nothing is broken, and allowed when something is.
    fn finds_when_strict(&self, words: &str) {
        let found = self.check(&Rules::strict("web"));
        assert!(found.len() == 1 && found[0].contains(words), "{found:?}");
        assert_eq!(self.check(&Rules::broken("web")), [""; 0]);
    }
}

fn ok(instance: &str) -> Outcome {
    Outcome::Ok {
        by: identity(instance),
    }
}

fn id(sequence: u32) -> LoadId {
    LoadId {
        client: 1,
        sequence,
    }
}

#[test]
fn a_clean_pair_passes() {
    let books = Books::clean();
    assert_eq!(books.check(&Rules::strict("web")), [""; 0]);
    assert_eq!(books.check(&Rules::broken("web")), [""; 0]);
}

#[test]
fn an_error_that_is_said_counts_only_when_nothing_is_broken() {
    let declared = Outcome::Declared {
        status: 503,
        code: "wait-timeout".to_owned(),
    };
    let broken = Outcome::Broken {
        how: "reset".to_owned(),
    };
    for (outcome, words) in [
        (declared, "1 were answered with an error: GET 1.20 at 1.0s"),
        (broken, "1 had no whole answer: GET 1.20"),
        (Outcome::Timeout, "1 had no answer in time: GET 1.20"),
    ] {
        let mut books = Books::clean();
        books.fails(outcome);
        books.finds_when_strict(words);
    }
}

#[test]
fn many_of_a_kind_are_one_finding() {
    let mut books = Books::clean();
    for _ in 0..12 {
        books.fails(Outcome::Timeout);
    }
    let found = books.check(&Rules::strict("web"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("12 had no answer"), "{found:?}");
    assert!(found[0].ends_with("and 7 more"), "{found:?}");
}

#[test]
fn a_request_without_an_outcome_is_found() {
    let mut books = Books::clean();
    books.send(Method::Get);
    books.finds("21 requests were sent and 20 have an outcome");
}

#[test]
fn an_outcome_that_was_counted_twice_is_found() {
    let mut books = Books::clean();
    books.hear(id(0), Method::Get, ok("web-a"));
    books.finds("20 sent and 20 ok by request, 20 and 21 by second");
}

#[test]
fn an_answer_to_another_request_is_found() {
    let mut books = Books::clean();
    books.fails(Outcome::Crossed {
        said: "another's".to_owned(),
    });
    books.finds("1 were answered with what is not their own");
}

#[test]
fn an_ok_that_nobody_served_is_found() {
    let mut books = Books::clean();
    let id = books.send(Method::Post);
    books.hear(id, Method::Post, ok("web-a"));
    books.finds("1 were answered ok by who never served them: 1.20 by web-a");
}

#[test]
fn an_ok_by_another_than_who_served_is_found() {
    let mut books = Books::clean();
    let id = books.send(Method::Get);
    books.serve(id, Method::Get, "web-a");
    books.hear(id, Method::Get, ok("web-b"));
    books.finds("1 were answered ok by who never served them: 1.20 by web-b");
}

#[test]
fn another_tenants_instance_is_found_by_both_books() {
    let mut books = Books::clean();
    let id = books.send(Method::Get);
    books.serve(id, Method::Get, "shop-a");
    books.hear(id, Method::Get, ok("shop-a"));
    let found = books.check(&Rules::broken("web"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("shop-a of default/shop"), "{found:?}");
    assert!(found[1].contains("1.20 by shop-a of shop"), "{found:?}");
}

#[test]
fn the_same_service_of_another_namespace_is_another_tenant() {
    let books = Books::clean();
    let rules = Rules {
        namespace: "other",
        ..Rules::broken("web")
    };
    let found = books.check(&rules);
    assert!(
        found[0].starts_with("2 answered and is another"),
        "{found:?}"
    );
    assert!(
        found[1].starts_with("20 were served by another"),
        "{found:?}"
    );
}

#[test]
fn an_answerer_that_no_node_knows_is_found() {
    let mut books = Books::clean();
    let id = books.send(Method::Get);
    books.serve(id, Method::Get, "web-a");
    books.hear(id, Method::Get, ok("web-ghost"));
    let found = books.check(&Rules::broken("web"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("no instance of any node"), "{found:?}");
}

#[test]
fn a_post_that_was_served_twice_is_found() {
    let mut books = Books::clean();
    books.serve(id(1), Method::Post, "web-b");
    books.finds("1 were served more than once: POST 1.1 2 times");
    // Also when its client was told of an error.
    let mut books = Books::clean();
    let id = books.send(Method::Post);
    books.serve(id, Method::Post, "web-a");
    books.serve(id, Method::Post, "web-b");
    books.hear(id, Method::Post, Outcome::Timeout);
    let found = books.check(&Rules::broken("web"));
    assert!(found[0].contains("POST 1.20 2 times"), "{found:?}");
}

#[test]
fn a_get_may_be_served_twice_only_when_something_is_broken() {
    let mut books = Books::clean();
    books.serve(id(0), Method::Get, "web-b");
    books.finds_when_strict("1 were served more than once: GET 1.0 2 times");
}

#[test]
fn a_request_that_was_never_sent_is_found() {
    let mut books = Books::clean();
    books.serve(id(99), Method::Get, "web-a");
    books.finds("1 were served and never sent: 1.99");
}

#[test]
fn another_method_than_was_sent_is_found() {
    let mut books = Books::clean();
    let id = books.send(Method::Post);
    books.serve(id, Method::Get, "web-a");
    books.hear(id, Method::Post, ok("web-a"));
    books.finds("1.20 as GET and not POST");
}

#[test]
fn shedding_is_no_ok() {
    let mut books = Books::clean();
    books.client.shed(Duration::from_secs(1));
    books.finds_when_strict("1 requests were shed by the client");
}

#[test]
fn a_book_with_gaps_is_no_proof() {
    let mut books = Books::clean();
    books.backend.gap(0, "7 lines dropped");
    books.finds("not whole: web-a: 7 lines dropped");
}

#[test]
fn another_clients_requests_are_not_ours() {
    let mut books = Books::clean();
    let other = LoadId {
        client: 2,
        sequence: 0,
    };
    books.serve(other, Method::Post, "shop-a");
    books.serve(other, Method::Post, "shop-a");
    assert_eq!(books.check(&Rules::strict("web")), [""; 0]);
}

#[test]
fn lost_logs_excuse_what_is_missing_and_nothing_else() {
    let rules = Rules {
        whole_logs: false,
        ..Rules::strict("web")
    };
    let mut books = Books::clean();
    let lost = books.send(Method::Post);
    books.hear(lost, Method::Post, ok("web-lost"));
    books.backend.gap(0, "7 lines dropped");
    assert_eq!(books.check(&rules), [""; 0]);
    books.serve(id(1), Method::Post, "web-b");
    let found = books.check(&rules);
    assert!(
        found.len() == 1 && found[0].contains("POST 1.1 2 times"),
        "{found:?}"
    );
}
