use std::time::Duration;
fn main() {
    let hook = std::env::args().nth(1);
    let mut f = probes::gpu::Follower::start("/proc".into(), hook.as_deref());
    let t = std::time::Instant::now();
    f.follow(Duration::ZERO).unwrap();
    println!("scan {:?}", t.elapsed());
    let gpu = f.gpu();
    loop {
        let t = std::time::Instant::now();
        f.follow(Duration::from_millis(500)).unwrap();
        println!("follow {:?} {:?}", t.elapsed(), gpu.status());
        for l in gpu.libraries() {
            println!(
                "  {:?} v{} users {:?} hooked {}/{} err {}",
                l.path,
                l.version,
                l.users,
                l.hooked.len(),
                l.found.len(),
                l.error
            );
        }
        println!("{:?}", gpu.attach_errors());
        gpu.read(&mut |p| println!("{p:?}"));
    }
}
