//! One thread's push + pop in crossbeam-deque (LIFO), as csrc/bench.c does it for ours.

use crossbeam_deque::Worker;
use std::hint::black_box;
use std::time::Instant;

const PAIRS: u32 = 200_000;

fn main() {
    let rounds: u32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    let worker = Worker::new_lifo();
    for _ in 0..rounds {
        worker.push(1i64);
        let began = Instant::now();
        for pair in 0..PAIRS {
            worker.push(i64::from(pair));
            black_box(worker.pop());
        }
        println!("crossbeam {:.2}", began.elapsed().as_secs_f64() / f64::from(PAIRS) * 1e9);
    }
}
