use super::*;

/// SplitMix64: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn millis(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }
}

/// What happens besides.
#[derive(Clone, Copy, PartialEq)]
pub enum Trouble {
    /// Messages are late or lost, processes stop and go on, are cut off, die, leave and are started, the server is away.
    Much,
    /// Messages take a moment.
    None,
}

/// How long a write may take until it is sent: a connection, a place in a queue.
const SENDING: u64 = 8_000;
/// How long it is on its way: with clocks that differ as those here, less than `lease` by the fastest without `term` by the
/// slowest.
const ON_ITS_WAY: u64 = 2_000;

/// What leaders write besides the record.
#[derive(Default)]
pub struct Writes {
    /// They take the time that they like, whatever becomes of the term.
    pub endless: bool,
    /// So many have arrived.
    pub done: u64,
    /// Those that arrived while somebody else led: whose they were, and who led.
    pub late: Vec<(u64, Vec<u64>)>,
    waiting: Vec<Waiting>,
    /// Sent: whose, and when they arrive.
    sent: Vec<(u64, Duration)>,
}

/// A write that was let through.
struct Waiting {
    name: u64,
    /// It is sent then, by the process's clock, unless its term is over.
    sends: Duration,
}

/// How long a process waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

struct Process {
    elector: Elector,
    /// Its clock: where it stood at first, and thousandths that pass in a thousandth.
    offset: Duration,
    rate: f64,
    /// It does nothing before.
    stopped: Duration,
    /// What it sends before is lost.
    cut: Duration,
    /// What it has asked, by number, and when by its clock.
    awaited: Option<(u64, Duration)>,
}

enum Message {
    Question(Ask),
    Answer(Answer),
}

struct Flying {
    arrives: Duration,
    /// The process, by its name, and the question's number.
    name: u64,
    question: u64,
    message: Message,
}

pub struct World {
    random: Random,
    timing: Timing,
    now: Duration,
    record: Option<Record>,
    version: u64,
    away: Duration,
    processes: Vec<(u64, Process)>,
    flying: Vec<Flying>,
    count: u64,
    /// Who left last.
    leaves: Option<u64>,
    pub writes: Writes,
}

impl World {
    pub fn new(seed: u64, timing: Timing) -> Self {
        let mut world = Self {
            random: Random(seed),
            timing,
            now: Duration::ZERO,
            record: None,
            version: 0,
            away: Duration::ZERO,
            processes: Vec::new(),
            flying: Vec::new(),
            count: 0,
            leaves: None,
            writes: Writes::default(),
        };
        (0..3).for_each(|_| world.start());
        world
    }

    fn start(&mut self) {
        self.count += 1;
        let process = Process {
            elector: Elector::new(self.count.to_string(), self.timing),
            offset: self.random.millis(1_000_000),
            // A quarter faster than the slowest: more than any clock.
            rate: 0.9 + self.random.below(225) as f64 / 1000.0,
            stopped: Duration::ZERO,
            cut: Duration::ZERO,
            awaited: None,
        };
        self.processes.push((self.count, process));
    }

    fn local(&self, process: &Process) -> Duration {
        process.offset + self.now.mul_f64(process.rate)
    }

    /// Who leads, by their own clocks, also those that are stopped at the moment.
    pub fn leaders(&self) -> Vec<u64> {
        let leads = |(_, process): &&(u64, Process)| process.elector.holds(self.local(process));
        self.processes.iter().filter(leads).map(|(name, _)| *name).collect()
    }

    pub fn transitions(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.transitions)
    }

    /// One step; the most that have led at once in it.
    pub fn step(&mut self, by: Duration, trouble: Trouble) -> usize {
        self.now += by;
        if trouble == Trouble::Much {
            self.trouble();
        }
        let mut most = self.leaders().len();
        // In any order.
        while let Some(place) = self.arrived() {
            let flying = self.flying.swap_remove(place);
            self.deliver(flying, trouble);
            most = most.max(self.leaders().len());
        }
        for place in 0..self.processes.len() {
            self.work(place, trouble);
        }
        self.write();
        most.max(self.leaders().len())
    }

    fn trouble(&mut self) {
        let seconds = |random: &mut Random, most: u64| random.millis(most * 1000);
        match self.random.below(600) {
            0 => self.away = self.now + seconds(&mut self.random, 25),
            1..=3 => {
                let place = self.random.below(self.processes.len() as u64) as usize;
                self.processes[place].1.stopped = self.now + seconds(&mut self.random, 40);
            }
            4..=6 => {
                let place = self.random.below(self.processes.len() as u64) as usize;
                self.processes[place].1.cut = self.now + seconds(&mut self.random, 40);
            }
            7 => {
                // Dies without a word.
                let place = self.random.below(self.processes.len() as u64) as usize;
                self.processes.swap_remove(place);
                self.start();
            }
            8 => {
                let place = self.random.below(self.processes.len() as u64) as usize;
                let local = self.local(&self.processes[place].1);
                let process = &mut self.processes[place].1;
                process.awaited = None;
                process.elector.leave(local);
                // Another one comes for it; it ends when the next one leaves.
                let name = self.processes[place].0;
                let leaves = self.leaves.replace(name);
                self.processes
                    .retain(|(known, _)| Some(*known) != leaves || *known == name);
                if leaves != Some(name) {
                    self.start();
                }
            }
            _ => {}
        }
    }

    /// Leaders begin writes now and then, send those whose time has come, and give up those whose term is over.
    fn write(&mut self) {
        let arrived = |(_, at): &mut (u64, Duration)| *at <= self.now;
        for (name, _) in self.writes.sent.extract_if(.., arrived).collect::<Vec<_>>() {
            let others: Vec<u64> = self.leaders().into_iter().filter(|leader| *leader != name).collect();
            self.writes.done += 1;
            if !others.is_empty() {
                self.writes.late.push((name, others));
            }
        }
        for (name, process) in &self.processes {
            let local = self.local(process);
            if self.now < process.stopped {
                continue;
            }
            let leads = process.elector.left(local).is_some();
            if leads && self.random.below(20) == 0 {
                let sends = local + self.random.millis(SENDING);
                self.writes.waiting.push(Waiting { name: *name, sends });
            }
            let over = !leads && !self.writes.endless;
            self.writes.waiting.retain(|write| write.name != *name || !over);
            let due = |write: &mut Waiting| write.name == *name && write.sends <= local;
            for write in self.writes.waiting.extract_if(.., due).collect::<Vec<_>>() {
                let arrives = self.now + self.random.millis(ON_ITS_WAY);
                self.writes.sent.push((write.name, arrives));
            }
        }
    }

    fn arrived(&mut self) -> Option<usize> {
        let here: Vec<usize> = (0..self.flying.len())
            .filter(|place| self.flying[*place].arrives <= self.now)
            .collect();
        let pick = self.random.below(here.len() as u64) as usize;
        here.get(pick).copied()
    }

    fn deliver(&mut self, flying: Flying, trouble: Trouble) {
        let Flying {
            name,
            question,
            message,
            ..
        } = flying;
        match message {
            Message::Question(_) if self.now < self.away => {}
            Message::Question(ask) => {
                let answer = self.serve(ask);
                self.send(name, question, Message::Answer(answer), trouble);
            }
            Message::Answer(answer) => {
                let now = self.now;
                let Some(place) = self.processes.iter().position(|(known, _)| *known == name) else {
                    return;
                };
                let local = self.local(&self.processes[place].1);
                let process = &mut self.processes[place].1;
                if now < process.stopped {
                    // It lies there until the process goes on.
                    self.flying.push(Flying {
                        arrives: process.stopped,
                        name,
                        question,
                        message: Message::Answer(answer),
                    });
                } else if process.awaited.is_some_and(|(awaited, _)| awaited == question) {
                    process.awaited = None;
                    process.elector.answer(local, answer);
                }
            }
        }
    }

    fn serve(&mut self, ask: Ask) -> Answer {
        let version = self.record.as_ref().map(|_| self.version.to_string());
        match ask {
            Ask::Read => Answer::Read(self.record.clone().zip(version)),
            Ask::Write { record, replaces } if replaces == version => {
                self.version += 1;
                self.record = Some(record);
                Answer::Written(self.version.to_string())
            }
            Ask::Write { .. } => Answer::Refused,
        }
    }

    fn send(&mut self, name: u64, question: u64, message: Message, trouble: Trouble) {
        let (lost, late) = match trouble {
            Trouble::Much => (
                self.random.below(20) == 0,
                [100, 100, 100, 1000, 1000, 12_000][self.random.below(6) as usize],
            ),
            Trouble::None => (false, 100),
        };
        if !lost {
            let arrives = self.now + self.random.millis(late);
            self.flying.push(Flying {
                arrives,
                name,
                question,
                message,
            });
        }
    }

    fn work(&mut self, place: usize, trouble: Trouble) {
        let local = self.local(&self.processes[place].1);
        let (name, process) = &mut self.processes[place];
        if self.now < process.stopped {
            return;
        }
        if process.awaited.is_some_and(|(_, since)| local > since + PATIENCE) {
            process.awaited = None;
            process.elector.answer(local, Answer::Lost);
        }
        if let Some(ask) = process.elector.poll(local, Timestamp::UNIX_EPOCH) {
            self.count += 1;
            let (name, question) = (*name, self.count);
            process.awaited = Some((question, local));
            if self.now >= process.cut {
                self.send(name, question, Message::Question(ask), trouble);
            }
        }
    }
}
