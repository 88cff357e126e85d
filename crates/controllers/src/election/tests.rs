use super::*;

/// Processes, a server and a network between them, in steps of real time. Each process has a clock of its own.
mod world;

use world::{Trouble, World};

const STEP: Duration = Duration::from_millis(50);
const SEEDS: u64 = 200;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn record(holder: &str) -> Record {
    Record {
        holder: holder.into(),
        duration: at(15),
        acquired: None,
        renewed: None,
        transitions: 3,
    }
}

/// Whether two lead at once at any moment of two minutes full of trouble; then, when it is calm, who leads.
fn run(seed: u64, timing: Timing) -> (bool, World) {
    play(World::new(seed, timing))
}

fn play(mut world: World) -> (bool, World) {
    let mut two = false;
    for trouble in [Trouble::Much, Trouble::None] {
        for _ in 0..(at(120).as_millis() / STEP.as_millis()) {
            two |= world.step(STEP, trouble) > 1;
        }
    }
    (two, world)
}

#[test]
fn never_two_at_once_and_one_when_it_is_calm() {
    for seed in 0..SEEDS {
        let (two, world) = run(seed, Timing::default());
        assert!(!two, "seed {seed}: two lead at once");
        assert_eq!(world.leaders().len(), 1, "seed {seed}: nobody leads when it is calm");
        let late = &world.writes.late;
        assert!(late.is_empty(), "seed {seed}: written while others lead: {late:?}");
        assert!(world.writes.done > 10, "seed {seed}: {} writes", world.writes.done);
    }
}

/// The test above sees what it is made for: here writes take the time that they like.
#[test]
fn a_write_that_may_be_sent_after_its_term_meets_the_next_leader() {
    let late = |seed: &u64| {
        let mut world = World::new(*seed, Timing::default());
        world.writes.endless = true;
        !play(world).1.writes.late.is_empty()
    };
    let seen = (0..SEEDS).filter(late).count();
    assert!(seen > 10, "seen in {seen} of {SEEDS}");
}

/// The test above sees what it is made for.
#[test]
fn a_term_longer_than_the_lease_lets_two_lead() {
    let timing = Timing {
        term: at(20),
        ..Timing::default()
    };
    let seen = (0..SEEDS).filter(|seed| run(*seed, timing).0).count();
    assert!(seen > 10, "seen in {seen} of {SEEDS}");
}

#[test]
fn troubles_change_the_leader_often() {
    let transitions: u64 = (0..SEEDS)
        .map(|seed| run(seed, Timing::default()).1.transitions())
        .sum();
    assert!(transitions > SEEDS, "{transitions}");
}

/// What an elector asks and when, for a script of answers: `(seconds, answer)`.
fn check(script: &[(u64, Answer)], expected: &[&str]) {
    let mut elector = Elector::new("me", Timing::default());
    let mut said = Vec::new();
    let mut script = script.iter();
    let mut second = 0;
    while second < 200 {
        let Some(ask) = elector.poll(at(second), Timestamp::UNIX_EPOCH) else {
            second += 1;
            continue;
        };
        said.push(match ask {
            Ask::Read => format!("{second} read"),
            Ask::Write { record, replaces } => {
                let replaces = replaces.as_deref().unwrap_or("none");
                format!("{second} write over {replaces}, {}", record.transitions)
            }
        });
        let Some((wait, answer)) = script.next() else { break };
        second += wait;
        elector.answer(at(second), answer.clone());
        if elector.holds(at(second)) {
            let left = elector.left(at(second)).unwrap_or_default();
            said.push(format!("leads to {}", second + left.as_secs()));
        }
    }
    assert_eq!(said, expected);
}

fn read(holder: &str, version: &str) -> Answer {
    Answer::Read(Some((record(holder), version.into())))
}

fn written(version: &str) -> Answer {
    Answer::Written(version.into())
}

#[test]
fn without_a_record_it_leads_at_once_and_counts_from_when_it_asked() {
    check(
        &[(0, Answer::Read(None)), (1, written("1")), (0, written("2"))],
        &[
            "0 read",
            "0 write over none, 0",
            "leads to 10",
            "2 write over 1, 0",
            "leads to 12",
            "4 write over 2, 0",
        ],
    );
}

#[test]
fn a_candidate_waits_a_whole_lease_since_the_last_change() {
    check(
        &[
            (0, read("x", "1")),
            (0, read("x", "1")),
            (0, read("x", "2")),
            (0, read("x", "2")),
            (0, Answer::Lost),
        ],
        &["0 read", "2 read", "4 read", "6 read", "8 read", "10 read"],
    );
    let mut script = vec![(0, read("x", "1")); 8];
    script.push((0, Answer::Refused));
    check(
        &script,
        &[
            "0 read",
            "2 read",
            "4 read",
            "6 read",
            "8 read",
            "10 read",
            "12 read",
            "14 read",
            "15 write over 1, 4",
            "17 read",
        ],
    );
}

#[test]
fn what_was_given_back_is_taken_at_once() {
    check(
        &[(0, read("x", "1")), (0, read("", "2"))],
        &["0 read", "2 read", "2 write over 2, 4"],
    );
}

#[test]
fn a_deleted_record_is_no_invitation_while_its_promise_lasts() {
    let mut script = vec![(0, read("x", "1"))];
    script.extend(vec![(0, Answer::Read(None)); 7]);
    check(
        &script,
        &[
            "0 read",
            "2 read",
            "4 read",
            "6 read",
            "8 read",
            "10 read",
            "12 read",
            "14 read",
            "15 write over none, 0",
        ],
    );
}

#[test]
fn who_was_refused_leads_no_more() {
    let mut elector = Elector::new("me", Timing::default());
    let ask = |elector: &mut Elector, now, answer| {
        elector.poll(now, Timestamp::UNIX_EPOCH).expect("something to ask");
        elector.answer(now, answer);
    };
    ask(&mut elector, at(0), Answer::Read(None));
    ask(&mut elector, at(0), written("1"));
    // A lost renewal costs nothing until the term is over.
    ask(&mut elector, at(2), Answer::Lost);
    assert!(elector.holds(at(9)) && !elector.holds(at(10)));
    // The lost one had arrived.
    ask(&mut elector, at(4), read("me", "2"));
    ask(&mut elector, at(4), written("3"));
    assert!(elector.holds(at(13)));
    ask(&mut elector, at(6), Answer::Refused);
    assert!(!elector.holds(at(6)));
}

#[test]
fn leaving_gives_the_record_back_and_never_takes_it_again() {
    let mut elector = Elector::new("me", Timing::default());
    for answer in [Answer::Read(None), written("1")] {
        elector.poll(at(0), Timestamp::UNIX_EPOCH).expect("something to ask");
        elector.answer(at(0), answer);
    }
    // A renewal is under way, and nobody knows what becomes of it.
    assert!(elector.poll(at(2), Timestamp::UNIX_EPOCH).is_some());
    elector.leave(at(2));
    assert!(!elector.holds(at(2)));
    assert_eq!(elector.poll(at(2), Timestamp::UNIX_EPOCH), Some(Ask::Read));
    elector.answer(at(2), read("me", "2"));
    let Some(Ask::Write { record, replaces }) = elector.poll(at(2), Timestamp::UNIX_EPOCH) else {
        panic!("{elector:?}")
    };
    assert_eq!((record.holder.as_str(), replaces.as_deref()), ("", Some("2")));
    elector.answer(at(2), written("3"));
    assert!(!elector.holds(at(2)));
    assert_eq!(elector.poll(at(99), Timestamp::UNIX_EPOCH), None);
}
