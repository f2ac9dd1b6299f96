package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := benchCommand()
	var out bytes.Buffer
	cmd.SetArgs(append(args, "--dir", t.TempDir()))
	cmd.SetOut(&out)
	cmd.SetErr(t.Output())
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// --json prints one object for each concurrency, which programs read.
func TestBenchJSON(t *testing.T) {
	for _, via := range []string{"leader", "follower"} {
		out, err := run(t, "--nodes=2", "--concurrency=1,3", "--rows=30", "--json", "--via="+via)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 2 {
			t.Fatalf("%d lines for 2 concurrencies:\n%s", len(lines), out)
		}
		for i, c := range []float64{1, 3} {
			var f map[string]float64
			if err := json.Unmarshal([]byte(lines[i]), &f); err != nil {
				t.Fatalf("%v in %s", err, lines[i])
			}
			if f["concurrency"] != c || f["nodes"] != 2 {
				t.Errorf("measured %v nodes at concurrency %v, want 2 and %v", f["nodes"], f["concurrency"], c)
			}
			for _, key := range []string{"inserts_per_s", "insert_p50_us", "insert_p99_us", "batch_rows_per_s", "select_per_s", "select_p50_us",
				"kv_put_per_s", "kv_put_p50_us", "kv_get_ns", "lock_per_s", "lock_p50_us", "notify_per_s", "notify_p50_us",
				"kv_put_to_insert_ratio", "lock_to_insert_ratio", "notify_to_insert_ratio"} {
				if f[key] <= 0 {
					t.Errorf("%s is %v", key, f[key])
				}
			}
		}
	}
}

func TestBenchRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"--durability=interval:200ms": "this version knows always only",
		"--nodes=0":                   "--nodes 0",
		"--concurrency=4,0":           "--concurrency [4 0]",
		"--nodes=1 --via=follower":    "a single node has none",
		"--rows=0 --via=nobody":       "--via nobody",
	} {
		if _, err := run(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the error is %v, want one with %q", args, err, want)
		}
	}
}

// The table has a row for each concurrency in both of its parts.
func TestBenchTable(t *testing.T) {
	out, err := run(t, "--nodes=1", "--concurrency=2,3", "--rows=30", "--keys=scattered")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{"2", "3"} {
		count := 0
		for line := range strings.Lines(out) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[0] == row {
				count++
			}
		}
		if count != 2 {
			t.Errorf("concurrency %s has %d rows, want 2:\n%s", row, count, out)
		}
	}
}

// f is called once with each number, at any concurrency.
func TestRepeat(t *testing.T) {
	for _, c := range []int{1, 3, 7, 64} {
		seen := make([]int, 55)
		times, err := repeat(t.Context(), nil, c, 50, func(i int) error { seen[i]++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		if slices.Min(seen) != 1 || slices.Max(seen) != 1 || times.count != 50 || len(times.each) != 50 {
			t.Errorf("at concurrency %d: %v", c, seen)
		}
	}
}
