//! Nodes and tokens: who comes in, who votes, who takes no instances.

use super::tests::{HOUR, done, founded, hash, node, refused, run};
use super::*;
use crate::model::{Role, UnixMs};

fn token(state: &mut State, digit: char, expires: u64) {
    let action = Action::CreateToken {
        hash: hash(digit),
        expires: UnixMs(expires),
    };
    done(run(state, 0, action));
}

fn enroll(state: &mut State, at: u64, digit: char, node: NodeIdentity) -> Reply {
    let token_hash = hash(digit);
    run(state, at, Action::Enroll { token_hash, node })
}

#[test]
fn the_first_three_nodes_vote_and_names_are_unique() {
    let mut state = founded();
    for (byte, label) in [(2, "fra-1"), (3, "lis-1"), (4, "ber-1")] {
        let digit = char::from(b'0' + byte);
        token(&mut state, digit, HOUR);
        done(enroll(&mut state, 5, digit, node(label, byte)));
    }
    let roles: Vec<_> = state.nodes.values().map(|n| n.role).collect();
    assert_eq!(
        roles,
        [Role::Voter, Role::Voter, Role::Voter, Role::Follower]
    );
    assert_eq!(state.nodes[&NodeId(4)].enrolled, UnixMs(5));

    token(&mut state, '5', HOUR);
    let taken = refused(enroll(&mut state, 5, '5', node("lis-1", 5)));
    assert_eq!(taken, "the name lis-1 is taken by another node");
    let again = refused(enroll(&mut state, 5, '5', node("new-1", 3)));
    assert!(
        again.starts_with("publicKey: belongs to another"),
        "{again}"
    );

    done(run(&mut state, 5, Action::RemoveNode { node: NodeId(3) }));
    done(enroll(&mut state, 5, '5', node("lis-1", 5)));
    let fresh = &state.nodes[&NodeId(5)];
    assert_eq!(
        (fresh.role, fresh.name.as_str()),
        (Role::Voter, "lis-1"),
        "fills the gap"
    );
}

#[test]
fn a_node_is_cordoned_until_it_is_not() {
    let mut state = founded();
    let intake = |state: &mut State, node, cordoned, draining| {
        let action = Action::CordonNode {
            node: NodeId(node),
            cordoned,
            draining,
        };
        run(state, 1, action)
    };
    let cordon = |state: &mut State, node, cordoned| intake(state, node, cordoned, false);
    for cordoned in [true, true, false] {
        done(cordon(&mut state, 1, cordoned));
        assert_eq!(state.nodes[&NodeId(1)].cordoned, cordoned);
    }
    done(intake(&mut state, 1, true, true));
    assert!(state.nodes[&NodeId(1)].draining);
    done(intake(&mut state, 1, false, true));
    let node = &state.nodes[&NodeId(1)];
    assert!(!node.cordoned && !node.draining, "it takes instances again");
    let reply = cordon(&mut state, 7, true);
    assert_eq!(refused(reply), "node n7 does not exist");
}

#[test]
fn the_last_voter_stays() {
    let mut state = founded();
    let reply = run(&mut state, 1, Action::RemoveNode { node: NodeId(1) });
    assert!(refused(reply).contains("only voter"));
    let reply = run(&mut state, 1, Action::RemoveNode { node: NodeId(7) });
    assert_eq!(refused(reply), "node n7 does not exist");
}

#[test]
fn tokens_are_used_once_and_expire() {
    let mut state = founded();
    token(&mut state, 'a', HOUR);
    token(&mut state, 'b', HOUR);
    let unknown = enroll(&mut state, 1, 'f', node("x", 9));
    assert_eq!(unknown, Reply::Refused(Refusal::TokenUnknown));
    let first = enroll(&mut state, 1, 'a', node("fra-1", 2));
    let index = state.index;
    assert_eq!(
        enroll(&mut state, 2, 'a', node("fra-1", 2)),
        first,
        "a lost answer"
    );
    assert_eq!(state.index, index);
    let second = enroll(&mut state, 2, 'a', node("lis-1", 3));
    assert_eq!(second, Reply::Refused(Refusal::TokenUsed));
    let remade = Action::CreateToken {
        hash: hash('a'),
        expires: UnixMs(HOUR),
    };
    done(run(&mut state, 3, remade));
    assert!(state.tokens[&hash('a')].used, "a used token stays used");
    let late = enroll(&mut state, HOUR, 'b', node("lis-1", 3));
    assert_eq!(late, Reply::Refused(Refusal::TokenExpired));
    let action = Action::CreateToken {
        hash: hash('d'),
        expires: UnixMs(40 * HOUR),
    };
    done(run(&mut state, 30 * HOUR, action));
    assert_eq!(
        state.tokens.keys().collect::<Vec<_>>(),
        [&hash('d')],
        "pruned"
    );
    let past = Action::CreateToken {
        hash: hash('e'),
        expires: UnixMs(5),
    };
    assert!(refused(run(&mut state, 6, past)).starts_with("ttl: "));
}
