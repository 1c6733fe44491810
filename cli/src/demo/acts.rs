//! What the demo shows, act by act: joining, deploying, a request from zero, warm requests, DNS,
//! the death of the registry's leader under load, and the return to zero. Each act measures and
//! writes its row; it stops the demo only where nothing could follow.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use netfabric::wire::api::{Explanation, InstanceView, Status};
use scheduler::model::InstanceState;
use tokio::time::sleep;

use super::http::{self, Load, Tally};
use super::images::{API, Recipe, WEB};
use super::nodes::{Node, until};
use super::scorecard::{Scorecard, span};
use super::shell::Run;
use super::{ORIGIN, PATIENCE, Say};

/// The promise of the whole demo.
const TIME_LIMIT: Duration = Duration::from_secs(90);
/// Short, so that the return to zero can be watched.
const WINDOW: &str = "6s";
const COLD_DEADLINE: Duration = Duration::from_secs(30);
const WARM_DEADLINE: Duration = Duration::from_secs(10);
const WARM_REQUESTS: usize = 50;
const LOAD_RATE: u32 = 100;
const LOAD_SPAN: Duration = Duration::from_secs(20);
/// Load before the kill, and from the kill to the restart.
const BEFORE_KILL: Duration = Duration::from_secs(4);
const UNTIL_RESTART: Duration = Duration::from_secs(8);
/// Window, draining and what gossip takes.
const TO_ZERO: Duration = Duration::from_secs(45);

/// A service of the demo and how its answer is known.
struct Piece {
    name: &'static str,
    recipe: &'static Recipe,
    says: &'static str,
}

const PIECES: [Piece; 2] = [
    Piece {
        name: "web",
        recipe: &WEB,
        says: "Welcome to nginx",
    },
    Piece {
        name: "api",
        recipe: &API,
        says: "from python",
    },
];

impl Piece {
    fn host(&self) -> String {
        format!("{}.{ORIGIN}", self.name)
    }
}

pub(super) struct Stage<'a> {
    nodes: Vec<Node>,
    say: Say<'a>,
    pub card: Scorecard,
}

impl<'a> Stage<'a> {
    pub fn new(nodes: Vec<Node>, say: Say<'a>) -> Self {
        Self {
            nodes,
            say,
            card: Scorecard::default(),
        }
    }

    pub async fn play(&mut self) -> Result<()> {
        self.gather().await?;
        self.deploy().await?;
        self.rest("at zero before the first request").await?;
        self.cold().await?;
        self.warm().await?;
        self.dig().await?;
        if self.nodes.len() >= 3 {
            self.lose_the_leader().await?;
        }
        self.rest("0 instances after idle").await
    }

    fn first(&self) -> &Node {
        &self.nodes[0]
    }

    async fn gather(&mut self) -> Result<()> {
        let began = Instant::now();
        let (first, others) = self.nodes.split_first().context("a demo has a node")?;
        (self.say)(&format!("{}: selvedge up", first.host.name));
        let mut invitation = first.up().await?;
        for (number, node) in others.iter().enumerate() {
            if number > 0 {
                let token = first.token().await?;
                invitation = (token.address, token.token);
            }
            let (address, token) = &invitation;
            (self.say)(&format!(
                "{}: selvedge join {address} --token …",
                node.host.name
            ));
            node.join(address, token).await?;
        }
        let (count, voters) = (self.nodes.len(), voters(self.nodes.len()));
        for node in &self.nodes {
            until(
                &format!("{} sees {count} nodes", node.host.name),
                PATIENCE,
                async || {
                    let status = node.status().await?;
                    let alive = status.nodes.iter().filter(|n| n.alive && n.serving).count();
                    let settled = status.registry.quorum && status.registry.voters.len() == voters;
                    Ok((alive == count && settled).then_some(()))
                },
            )
            .await?;
        }
        self.card.figure(
            &format!("{count} nodes in as many regions joined"),
            span(began.elapsed()),
        );
        Ok(())
    }

    async fn deploy(&mut self) -> Result<()> {
        for piece in &PIECES {
            let began = Instant::now();
            let image = piece.recipe.reference();
            (self.say)(&format!(
                "selvedge deploy {} --image {image} --scale 0..10",
                piece.name
            ));
            let verb = ["deploy", piece.name, "--image", &image, "--port", "8080"];
            let scale = [
                "--scale",
                "0..10",
                "--window",
                WINDOW,
                "--wait-timeout",
                "60s",
            ];
            self.first().cli(&[&verb[..], &scale].concat()).ok().await?;
            let what = format!("{} deployed and seen ready", piece.name);
            self.card.figure(&what, span(began.elapsed()));
        }
        Ok(())
    }

    /// Waits until no instance runs anywhere.
    async fn rest(&mut self, what: &str) -> Result<()> {
        (self.say)("nobody asks: waiting for zero instances");
        let began = Instant::now();
        let node = self.first().clone();
        let rested = until(what, TO_ZERO, async || {
            Ok(running(&node.instances().await?)
                .next()
                .is_none()
                .then_some(()))
        })
        .await;
        let left = node.instances().await.map(|all| running(&all).count())?;
        let figure = match rested {
            Ok(()) => format!("0, after {}", span(began.elapsed())),
            Err(_) => format!("{left}, after {}", span(began.elapsed())),
        };
        self.card.promise(what, figure, rested.is_ok());
        Ok(())
    }

    /// The first request, at the last node for the first service and so on.
    async fn cold(&mut self) -> Result<()> {
        for (piece, node) in PIECES.iter().zip(self.nodes.clone().iter().rev().cycle()) {
            (self.say)(&format!(
                "the first request for {} comes to {}",
                piece.name, node.host.name
            ));
            let answer = http::get(node.door(), &piece.host(), "/", COLD_DEADLINE).await;
            let what = format!("cold request to {} answered from zero", piece.name);
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    self.card.promise(&what, format!("{error:#}"), false);
                    continue;
                }
            };
            let right = answer.status == 200 && answer.body.contains(piece.says);
            let figure = if right {
                span(answer.took)
            } else {
                format!("{} {}", answer.status, answer.body.trim_end())
            };
            self.card.promise(&what, figure, right);
            let bill = match &answer.request_id {
                Some(id) => bill(node, id).await.unwrap_or_else(|e| format!("{e:#}")),
                None => "the answer carries no x-request-id".to_owned(),
            };
            self.card.figure("  its bill", bill);
        }
        Ok(())
    }

    async fn warm(&mut self) -> Result<()> {
        (self.say)(&format!("{WARM_REQUESTS} warm requests at every node"));
        for node in self.nodes.clone() {
            let (mut took, mut wrong) = (Vec::new(), Vec::new());
            for piece in PIECES.iter().cycle().take(WARM_REQUESTS) {
                match http::get(node.door(), &piece.host(), "/", WARM_DEADLINE).await {
                    Ok(a) if a.status == 200 && a.body.contains(piece.says) => took.push(a.took),
                    Ok(answer) => wrong.push(format!("{} {}", answer.status, answer.body)),
                    Err(error) => wrong.push(format!("{error:#}")),
                }
            }
            took.sort_unstable();
            let median = took
                .get(took.len() / 2)
                .map_or_else(String::new, |t| span(*t));
            let figure = match wrong.first() {
                None => format!("{WARM_REQUESTS} of {WARM_REQUESTS}, median {median}"),
                Some(why) => format!("{} failed: {}", wrong.len(), why.trim_end()),
            };
            let what = format!("warm requests at {}", node.host.name);
            self.card.promise(&what, figure, wrong.is_empty());
        }
        Ok(())
    }

    /// Every node's DNS names itself first: it is the nearest to whoever asks it.
    async fn dig(&mut self) -> Result<()> {
        (self.say)("dig at every node");
        for node in self.nodes.clone() {
            let own = node.host.address.to_string();
            let answer = dig(&own, &format!("web.{ORIGIN}")).await?;
            let kept = answer.first() == Some(&own);
            let what = format!("dig @{own} web.{ORIGIN}");
            self.card.promise(&what, answer.join(" "), kept);
        }
        Ok(())
    }

    async fn lose_the_leader(&mut self) -> Result<()> {
        let leader = self.leader().await?;
        let others: Vec<_> = self
            .nodes
            .iter()
            .filter(|n| n.host != leader.host)
            .cloned()
            .collect();
        let load = Load {
            doors: others.iter().map(Node::door).collect(),
            hosts: PIECES.iter().map(Piece::host).collect(),
            per_second: LOAD_RATE,
            span: LOAD_SPAN,
            deadline: WARM_DEADLINE,
        };
        (self.say)(&format!(
            "{LOAD_RATE} requests/s at the other nodes for {} s",
            LOAD_SPAN.as_secs()
        ));
        let load = tokio::spawn(load.run());
        sleep(BEFORE_KILL).await;
        (self.say)(&format!(
            "kill -9 of selvedged on {}, the registry's leader",
            leader.host.name
        ));
        let killed = Instant::now();
        leader.kill()?;
        let healed = self.change_again(&others, killed).await;
        sleep(UNTIL_RESTART.saturating_sub(killed.elapsed())).await;
        (self.say)(&format!("selvedged on {} starts again", leader.host.name));
        leader.restart().await?;
        let tally = load.await.context("the load broke")?;
        self.count(&tally);
        healed?;
        self.comes_back(&leader).await
    }

    /// How long until the registry takes changes again.
    async fn change_again(&mut self, others: &[Node], killed: Instant) -> Result<()> {
        let node = others
            .first()
            .context("a demo that loses a node has others")?;
        let scaled = until(
            "a change after the leader's death",
            UNTIL_RESTART,
            async || {
                let scale = node.cli(&["scale", "web", "0..9", "--no-wait"]);
                Ok((scale.within(UNTIL_RESTART).outcome().await?.code == 0).then_some(()))
            },
        )
        .await;
        let figure = match &scaled {
            Ok(()) => span(killed.elapsed()),
            Err(error) => format!("{error:#}"),
        };
        self.card
            .promise("registry takes changes again after", figure, scaled.is_ok());
        Ok(())
    }

    fn count(&mut self, tally: &Tally) {
        let slowest = span(tally.slowest);
        let mut figure = format!("{} of {}, slowest {slowest}", tally.failed, tally.sent);
        for reason in &tally.reasons {
            figure.push_str("; ");
            figure.push_str(reason);
        }
        let kept = tally.failed == 0 && tally.sent > 0;
        self.card
            .promise("failed requests while the leader dies", figure, kept);
    }

    async fn comes_back(&mut self, lost: &Node) -> Result<()> {
        let began = Instant::now();
        let count = self.nodes.len();
        let back = until("the lost node is back", PATIENCE, async || {
            let status = lost.status().await?;
            let answer = http::get(lost.door(), &PIECES[0].host(), "/", WARM_DEADLINE).await?;
            let alive = status.nodes.iter().filter(|n| n.alive).count();
            Ok((alive == count && answer.status == 200).then_some(()))
        })
        .await;
        let figure = match &back {
            Ok(()) => format!("serves again, {} after its restart", span(began.elapsed())),
            Err(error) => format!("{error:#}"),
        };
        self.card.promise("the lost node", figure, back.is_ok());
        Ok(())
    }

    async fn leader(&self) -> Result<Node> {
        let status = until("a leader", PATIENCE, async || {
            let status = self.first().status().await?;
            Ok(status.registry.leader.is_some().then_some(status))
        })
        .await?;
        let name = leader_name(&status).context("the leader is not among the nodes")?;
        let node = self.nodes.iter().find(|n| n.host.name == name);
        node.cloned()
            .with_context(|| format!("the leader {name} is none of the demo's"))
    }
}

/// The row that holds the demo to its own time.
pub(super) fn time_limit(card: &mut Scorecard, took: Duration) {
    card.seconds = took.as_secs_f64();
    let limit = TIME_LIMIT.as_secs();
    card.promise(
        &format!("all of it in less than {limit} s"),
        span(took),
        took < TIME_LIMIT,
    );
}

/// The first three nodes vote; two cannot lose one, so the second waits for the third.
fn voters(nodes: usize) -> usize {
    nodes.min(3)
}

fn leader_name(status: &Status) -> Option<String> {
    let leader = status.registry.leader?;
    status
        .nodes
        .iter()
        .find(|n| n.id == leader)
        .map(|n| n.name.to_string())
}

/// Instances that use anything up.
fn running(all: &[InstanceView]) -> impl Iterator<Item = &InstanceView> {
    all.iter()
        .filter(|i| i.state.is_live() || i.state == InstanceState::Draining)
}

async fn bill(node: &Node, request: &str) -> Result<String> {
    let text = node.cli(&["-o", "json", "explain", request]).ok().await?;
    let explanation: Explanation = serde_json::from_str(&text).context("reading the bill")?;
    let bill = explanation.bill.context("the request has no bill")?;
    let micros = |m: u64| span(Duration::from_micros(m));
    let phases: Vec<_> = bill
        .phases
        .iter()
        .map(|p| format!("{} {}", p.name, micros(p.micros)))
        .collect();
    Ok(phases.join(" + "))
}

async fn dig(server: &str, name: &str) -> Result<Vec<String>> {
    let at = format!("@{server}");
    let dig = Run::new("dig").args(["+short", "+time=2", "+tries=2", &at, name, "A"]);
    let text = dig.outcome().await?.stdout;
    Ok(text.lines().map(ToOwned::to_owned).collect())
}
