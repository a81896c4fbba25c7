"""Real timestamps (noise of 8 ms, offset of 5 s) end training from disk with a traceback of a worker; in memory they are not looked at (lerobot#3513)."""

from dataclasses import replace

from case_sets import INFO, check, column, end, is_refused, make, np, pq, short, train

root = make(length=lambda number: 8 + number, size=64, info=replace(INFO, storage="video"))
rng = np.random.default_rng(0)
clean = {file: pq.ParquetFile(file).read() for file in root.glob("data/*/*.parquet")}
for name, offset, noise in (("noise", 0.0, 0.008), ("offset", 5.0, 0.0)):
    for file, table in clean.items():
        times = np.array(table["timestamp"].to_pylist()) + offset + rng.uniform(0, noise, len(table))
        pq.write_table(column(table, "timestamp", times.astype(np.float32)), file)
    for workers in (0, 2):
        found = train(
            root,
            f"{name}{workers}",
            "dataset_mixture.in_memory_gib=0",
            f"dataset_mixture.num_workers={workers}",
        )
        is_right = found[0] == 0 or is_refused(found, "timestamp")
        check(is_right, f"{name}, num_workers={workers}: {short(found)}")

end()
