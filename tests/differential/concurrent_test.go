package differential

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
)

// If many clients write at once, two databases cannot be compared with each other, but
// the nodes of one cluster can. So these tests use the whole grammar, including what
// could differ from node to node.
var anything = features{nondeterministic: true, unordered: true, ownFile: true, counters: true, settings: true, temp: true}

// A client is one of several that write at the same time.
type client struct {
	generator
	number int
	db     *sql.DB
	conn   *sql.Conn
	open   bool // the client believes that it has an open transaction
	past   *past
}

// past is what the clients have run, in the order in which it ended.
type past struct {
	sync.Mutex
	all []string
}

func (p *past) add(line string) {
	p.Lock()
	defer p.Unlock()
	p.all = append(p.all, line)
}

// TestReplicas runs clients on all nodes at once, restarts nodes and sends them
// snapshots, and compares the nodes.
func TestReplicas(t *testing.T) {
	const clients, steps, bursts = 6, 40, 3
	d := newDatabase(t, 3)
	t.Cleanup(d.close)
	statements, began := 0, time.Now()
	seeds(t, func(seed uint64) {
		d.begin()
		random := rand.New(rand.NewPCG(seed, 11))
		history := &past{}
		for burst := range bursts {
			d.disconnect()
			var all sync.WaitGroup
			for i := range clients {
				c := &client{number: i, db: d.at(i), past: history}
				c.generator = generator{Rand: rand.New(rand.NewPCG(seed, uint64(100*burst+i))), features: anything, schema: &schema{}}
				all.Go(func() { c.run(steps) })
			}
			all.Wait()
			d.connect()
			what := d.unequal()
			if what == "" {
				switch random.IntN(4) {
				case 0:
					d.restart(random.IntN(3))
				case 1:
					d.snapshot(random.IntN(3))
				}
				what = d.unequal()
			}
			statements = statements + clients*steps
			if what != "" {
				d.spoiled = true
				t.Fatalf("seed %d, burst %d: %s\n%s\n--- the last statements:\n%s", seed, burst, what, d.differences(), strings.Join(history.all[max(0, len(history.all)-40):], "\n"))
			}
		}
	})
	t.Logf("about %d statements, %.0f a second", statements, float64(statements)/time.Since(began).Seconds())
}

func (c *client) run(steps int) {
	defer func() {
		if c.conn != nil {
			_ = c.conn.Close()
		}
	}()
	for n := range steps {
		ctx, cancel := stepContext()
		if c.conn == nil {
			conn, err := c.db.Conn(ctx)
			if err != nil {
				cancel()
				return
			}
			c.conn, c.open = conn, false
		}
		if n%8 == 0 || c.chance(10) {
			if s, err := readSchema(hiqlite.WithConsistency(ctx, hiqlite.Local), c.conn); err == nil {
				c.schema = s
			}
		}
		c.step(ctx)
		cancel()
	}
}

func (c *client) step(ctx context.Context) {
	switch n := c.IntN(100); {
	case n < 2:
		_ = c.conn.Close()
		c.conn = nil
	case n < 14 && !c.open:
		c.begin(noParams)
		_, err := c.exec(ctx, c.pick("BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT a"), nil)
		c.open = err == nil
	case n < 25 && c.open:
		_, err := c.exec(ctx, c.pick("COMMIT", "COMMIT", "COMMIT", "ROLLBACK", "RELEASE a", "ROLLBACK TO a", "SAVEPOINT a"), nil)
		if err != nil || c.chance(50) {
			_, _ = c.exec(ctx, c.pick("COMMIT", "ROLLBACK"), nil)
			_, _ = c.exec(ctx, "ROLLBACK", nil)
			c.open = false
		}
	case n < 33 && !c.open:
		c.batch(ctx)
	case n < 38:
		c.begin(noParams)
		_, _ = c.exec(ctx, c.script(), nil)
	case n < 41:
		short, cancel := context.WithTimeout(ctx, time.Duration(c.IntN(3000))*time.Microsecond)
		defer cancel()
		c.statement(short, c.write)
	case n < 43:
		_, _ = c.exec(ctx, "PRAGMA "+c.pick("foreign_keys=0", "foreign_keys=1", "recursive_triggers=1", "recursive_triggers=0", "reverse_unordered_selects=1", "reverse_unordered_selects=0", "ignore_check_constraints=1", "case_sensitive_like=1", "case_sensitive_like=0", "legacy_alter_table=1"), nil)
	case n < 58:
		c.statement(ctx, c.change)
	case n < 66:
		c.statement(ctx, c.query)
	default:
		c.statement(ctx, c.write)
	}
}

func (c *client) statement(ctx context.Context, text func() string) {
	c.begin(c.anyStyle())
	query, args := c.resolve(text())
	s := step{text: query, args: args}
	if c.chance(40) {
		o := ofConn(c.conn, query).see(ctx, s)
		c.told(s, o.cause)
		return
	}
	_, _ = c.exec(ctx, query, args)
}

func (c *client) exec(ctx context.Context, text string, args []any) (sql.Result, error) {
	s := step{text: text, args: args, how: exec}
	r, err := c.conn.ExecContext(ctx, text, s.values()...)
	c.told(s, err)
	return r, err
}

func (c *client) told(s step, err error) {
	line := fmt.Sprintf("client %d: %s", c.number, s)
	if err != nil {
		line += " -- " + strings.Split(err.Error(), "\n")[0]
	}
	c.past.add(line)
}

// batch runs several statements as one batch. Some of them fail.
func (c *client) batch(ctx context.Context) {
	var all []hiqlite.Statement
	shown := ""
	for range 2 + c.IntN(4) {
		c.begin(plainParams)
		query, args := c.resolve(c.write())
		s := step{text: query, args: args}
		shown += s.String() + "\n"
		all = append(all, hiqlite.Statement{SQL: query, Args: s.values()})
	}
	_, err := hiqlite.Batch(ctx, c.db, all...)
	c.told(step{text: "batch: " + shown}, err)
}

func (c *client) script() string {
	all := make([]string, 2+c.IntN(3))
	for i := range all {
		all[i] = c.write()
	}
	return strings.Join(all, ";\n")
}

// differences returns the rows in which the nodes differ.
func (d *database) differences() string {
	queries := d.queries()
	for i, text := range queries {
		queries[i] = strings.Replace(text, schemaDump, "SELECT * FROM sqlite_schema", 1)
	}
	var dumps [][]string
	for _, n := range d.cluster.Nodes() {
		ctx, cancel := stepContext()
		c, err := n.DB().Conn(ctx)
		if err != nil {
			cancel()
			return err.Error()
		}
		var dump []string
		for _, text := range queries {
			o := ofConn(c, text).see(ctx, step{})
			dump = append(dump, o.err+strings.Join(o.rows, "\n"))
		}
		dumps = append(dumps, dump)
		_ = c.Close()
		cancel()
	}
	var b strings.Builder
	for i := range queries {
		for n := 1; n < len(dumps); n++ {
			if dumps[n][i] == dumps[0][i] {
				continue
			}
			fmt.Fprintf(&b, "%s\n", queries[i])
			one, two := strings.Split(dumps[0][i], "\n"), strings.Split(dumps[n][i], "\n")
			for _, line := range one {
				if !slices.Contains(two, line) {
					fmt.Fprintf(&b, "  node 1: %s\n", line)
				}
			}
			for _, line := range two {
				if !slices.Contains(one, line) {
					fmt.Fprintf(&b, "  node %d: %s\n", n+1, line)
				}
			}
		}
	}
	return b.String()
}
