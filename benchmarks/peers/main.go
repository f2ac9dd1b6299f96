// Command peers measures this project beside the newest release of the Rust crate
// hiqlite, from which it comes:
//
//	go run ./benchmarks/peers
//
// Both run in turn, several times, with three nodes in one process and on one disk, and
// both acknowledge a write when a majority has it on disk. It prints the medians and their
// ratios as a table in Markdown. It needs cargo, and takes about five minutes to build the
// crate the first time. Nothing else should run on the machine.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// figures are what both programs measure at one concurrency.
type figures struct {
	Concurrency int     `json:"concurrency"`
	Inserts     float64 `json:"inserts_per_s"`
	InsertP50   float64 `json:"insert_p50_us"`
	InsertP99   float64 `json:"insert_p99_us"`
	TxRows      float64 `json:"tx_rows_per_s"`
	Puts        float64 `json:"kv_put_per_s"`
}

// columns are the figures of the table.
var columns = []struct {
	name string
	of   func(figures) float64
}{
	{"inserts/s", func(f figures) float64 { return f.Inserts }},
	{"insert p50, us", func(f figures) float64 { return f.InsertP50 }},
	{"insert p99, us", func(f figures) float64 { return f.InsertP99 }},
	{"rows/s in transactions", func(f figures) float64 { return f.TxRows }},
	{"kv puts/s", func(f figures) float64 { return f.Puts }},
}

type peers struct {
	runs          int
	concurrencies string
	seconds       float64
	rows          int
	dir           string
}

func main() {
	var p peers
	flag.IntVar(&p.runs, "runs", 5, "how often each program runs")
	flag.StringVar(&p.concurrencies, "concurrency", "1,4,16,64,256", "tasks that write at the same time")
	flag.Float64Var(&p.seconds, "seconds", 3, "for how long the crate is measured, for each figure")
	flag.IntVar(&p.rows, "rows", 10_000, "INSERTs of this project that are measured at each concurrency")
	flag.StringVar(&p.dir, "dir", "/var/tmp", "folder on the disk to measure")
	flag.Parse()
	if err := p.run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (p *peers) run() error {
	folder, err := os.MkdirTemp(p.dir, "hiqlite-peers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	ours, theirs, err := build(folder)
	if err != nil {
		return err
	}
	var all [2][][]figures
	for run := range p.runs {
		data := filepath.Join(folder, fmt.Sprint(run))
		for i, command := range []*exec.Cmd{
			exec.Command(theirs, data, "immediate", "true", p.concurrencies, fmt.Sprint(p.seconds)),
			exec.Command(ours, "bench", "--json", "--dir", folder, "--concurrency", p.concurrencies, "--rows", fmt.Sprint(p.rows)),
		} {
			f, err := measure(command)
			if err != nil {
				return err
			}
			all[i] = append(all[i], f)
		}
		if err := os.RemoveAll(data); err != nil {
			return err
		}
	}
	return print(all[0], all[1])
}

// build builds both programs.
func build(folder string) (ours, theirs string, err error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/hiqlite/hiqlite").Output()
	if err != nil {
		return "", "", fmt.Errorf("run it in the repository: %w", err)
	}
	root := strings.TrimSpace(string(out))
	crate := filepath.Join(root, "benchmarks", "peers", "seed")
	cargo := exec.Command("cargo", "build", "--release")
	cargo.Dir = crate
	ours = filepath.Join(folder, "hiqlite")
	binary := exec.Command("go", "build", "-o", ours, ".")
	binary.Dir = filepath.Join(root, "cmd", "hiqlite")
	binary.Env = append(os.Environ(), "CGO_ENABLED=0")
	for _, c := range []*exec.Cmd{cargo, binary} {
		c.Stdout, c.Stderr = os.Stderr, os.Stderr
		if err := c.Run(); err != nil {
			return "", "", fmt.Errorf("%s: %w", c, err)
		}
	}
	return ours, filepath.Join(crate, "target", "release", "seed-bench"), nil
}

// measure runs a program, and returns the figures that it prints.
func measure(c *exec.Cmd) ([]figures, error) {
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", c, err, errs.String())
	}
	var all []figures
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), "{") {
			continue
		}
		var f figures
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s printed no figures: %s", c, out)
	}
	return all, lines.Err()
}

// print prints the medians of all runs, and how many times theirs ours are.
func print(theirs, ours [][]figures) error {
	if len(theirs[0]) != len(ours[0]) {
		return errors.New("the programs measured different concurrencies")
	}
	fmt.Print("| concurrency |")
	for _, c := range columns {
		fmt.Printf(" %s: crate | here | ratio |", c.name)
	}
	fmt.Print("\n|", strings.Repeat("---:|", 1+3*len(columns)), "\n")
	for i := range ours[0] {
		fmt.Printf("| %d |", ours[0][i].Concurrency)
		for _, c := range columns {
			median := func(runs [][]figures) float64 {
				var all []float64
				for _, run := range runs {
					all = append(all, c.of(run[i]))
				}
				slices.Sort(all)
				return all[len(all)/2]
			}
			a, b := median(theirs), median(ours)
			fmt.Printf(" %.0f | %.0f | %.2f |", a, b, b/a)
		}
		fmt.Println()
	}
	return nil
}
