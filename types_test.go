package hiqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// everyArgument holds values of all kinds that a program may pass.
func everyArgument() []any {
	zone := time.FixedZone("XYZ", -(3*3600 + 1800))
	return []any{
		nil, 0, int64(math.MaxInt64), int64(math.MinInt64), int8(-3), uint32(math.MaxUint32), uint64(math.MaxInt64), uint64(math.MaxUint64),
		0.0, math.Copysign(0, -1), 1.5, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64, math.SmallestNonzeroFloat64, float32(0.1), 1e15, 9007199254740993.0,
		"", "text", "it's", "nul\x00inside", "\xff\xfe invalid", "üñí 世界 🙂", strings.Repeat("x", 5000), "12", "1.0",
		[]byte(nil), []byte("bytes"), []byte{0, 1, 0xff}, true, false,
		sql.NullString{}, sql.NullString{String: "s", Valid: true}, sql.NullInt64{}, sql.NullInt64{Int64: 4, Valid: true}, sql.NullFloat64{Float64: 4, Valid: true},
		sql.NullBool{Bool: true, Valid: true}, sql.NullTime{}, sql.NullTime{Time: time.Unix(7, 0).UTC(), Valid: true}, sql.Null[string]{V: "n", Valid: true}, sql.RawBytes("raw"),
		new(int), (*int)(nil), fmt.Stringer(nil), named("word"),
		time.Unix(0, 0).UTC(), time.Date(2024, 2, 29, 23, 59, 59, 123456789, time.UTC), time.Date(2024, 7, 1, 12, 0, 0, 0, zone), time.Date(1969, 12, 31, 1, 2, 3, 4000000, time.UTC),
		time.Time{}, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2001, 1, 1, 0, 0, 0, 0, time.Local),
		struct{}{}, []int{1}, make(chan int), map[string]int{}, complex(1, 1), [2]byte{1, 2},
	}
}

type named string

func TestArgumentsOfAllKinds(t *testing.T) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			p := newPair(t, "")
			p.same(w, text("CREATE TABLE t(id INTEGER PRIMARY KEY, plain, i INT, r REAL, tx TEXT, b BLOB, n NUMERIC, d DATE, v VARCHAR(10), bo BOOLEAN)"))
			for _, v := range everyArgument() {
				p.same(w, text("INSERT INTO t(plain,i,r,tx,b,n,d,v,bo) VALUES(?1,?1,?1,?1,?1,?1,?1,?1,?1)", v))
				p.same(w, text("INSERT INTO t(plain,i,r,tx,b,n,d,v,bo) VALUES(?1,?1,?1,?1,?1,?1,?1,?1,?1) RETURNING *, typeof(plain)", v))
				p.same(w, text("SELECT ?, typeof(?1), ?1 IS NULL, length(?1)", v))
			}
			p.same(way{"", seeQuery}, text("SELECT * FROM t"))
			p.same(way{"", seeQuery}, text("SELECT typeof(plain), typeof(i), typeof(r), typeof(tx), typeof(n), hex(tx), quote(b), max(d), d||'' FROM t GROUP BY id"))
		})
	}
}

func TestNamedParameters(t *testing.T) {
	a, b := sql.Named("a", 1), sql.Named("b", "two")
	eachWay(t, "", []step{
		text("SELECT :a, @b", a, b), text("SELECT $b, :a, $a", a, b), text("SELECT ?1, ?2, ?1", "x", "y"), text("SELECT $1, $2, $1", "x", "y"),
		text("SELECT ?2, ?", 1, 2, 3), text("SELECT ?, ?2, :a", 5, 6, a),
		text("SELECT :a"), text("SELECT :nope", a), text("SELECT ?"), text("SELECT ?, ?", 1), text("SELECT ?3", 1, 2), text("SELECT ?1, ?3", 1, 2, 3),
		text("SELECT :a, ?1", a), text("SELECT @a, :a, $a", a), text("SELECT $a::b", sql.Named("a::b", 3)), text("SELECT ?01", 1), text("SELECT ?0", 1), text("SELECT ?99999999", 1),
		text("CREATE TABLE t(a, b)"), text("INSERT INTO t VALUES(:a, @b) RETURNING a, b", a, b), text("INSERT INTO t(a) VALUES(:a)"),
		text("UPDATE t SET a=$1 WHERE a=:a", "new", a), text("SELECT a, b FROM t WHERE b=@b", b),
	})
}

// timeOptions are all combinations of what a DSN can say about times.
func timeOptions() (all []string) {
	for _, format := range []string{"", "sqlite", "datetime", "string_no_monotonic"} {
		for _, integer := range []string{"", "unix", "unix_milli", "unix_micro", "unix_nano"} {
			for _, zone := range []string{"", "UTC", "America/New_York"} {
				for _, flags := range []string{"", "&_inttotime=1", "&_texttotime=1", "&_inttotime=true&_texttotime=t"} {
					all = append(all, "_time_format="+format+"&_time_integer_format="+integer+"&_timezone="+zone+flags)
				}
			}
		}
	}
	return all
}

func TestTimesInAllFormats(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	p := newPair(t, "")
	query := way{"query", seeQuery}
	const columns = "d DATE, dt DATETIME, ts TIMESTAMP, ti TIME, i INT, tx TEXT, x"
	p.same(query, text("CREATE TABLE kept("+columns+")"))
	for _, v := range []any{
		"2024-02-03", "2024-02-03 04:05", "2024-02-03T04:05", "2024-02-03 04:05:06", "2024-02-03T04:05:06Z", "2024-02-03 04:05:06.123456789+02:00", "2024-02-03T04:05:06.5-07:00",
		"2024-02-03 04:05:06Z", "2024-02-03Z", "2024-02-03 04:05:06 +0200 CEST", "2024-02-03 04:05:06.7 +0000 UTC m=+0.123", "m=+1", "04:05:06", "2460000.5", "no time", "",
		0, 1, -1, 1700000000, 1700000000000, 1700000000000000, 1700000000000000000, 1000000000000, 1000000000001, -1000000000000, -1000000000001, math.MaxInt64, math.MinInt64, 1.5, []byte("2024-02-03"), nil,
	} {
		p.same(query, text("INSERT INTO kept VALUES(?1,?1,?1,?1,?1,?1,?1)", v))
	}
	for i, options := range timeOptions() {
		p.conns = p.open(options)
		t.Log(options)
		p.same(query, text("SELECT * FROM kept"))
		p.same(query, text("SELECT max(d), dt||'', (SELECT ts), upper(tx), x, datetime(dt) FROM kept GROUP BY rowid"))
		table := fmt.Sprint("t", i)
		p.same(query, text("CREATE TABLE "+table+"("+columns+")"))
		for _, v := range everyArgument() {
			if at, ok := v.(time.Time); ok {
				p.same(query, text("INSERT INTO "+table+" VALUES(?1,?1,?1,?1,?1,?1,?1) RETURNING *, max(d,'')", at))
				p.same(query, text("SELECT ?1, typeof(?1)", at))
			}
		}
		p.same(query, text("SELECT * FROM "+table))
		p.same(query, text("UPDATE "+table+" SET x=d RETURNING *, x||''"))
		if t.Failed() {
			return
		}
		p.conns[0].Close()
		p.conns[1].Close()
	}
}

// Scanning is database/sql's, but what it makes of a value depends on the type
// that the driver gives it.
func TestScanning(t *testing.T) {
	p := newPair(t, "")
	for _, s := range []step{
		text("CREATE TABLE t(id INTEGER PRIMARY KEY, i INT, r REAL, tx TEXT, b BLOB, d DATETIME, bo BOOLEAN, n)"),
		text("INSERT INTO t VALUES(1, 7, 1.5, 'text', x'62797465', '2024-02-03 04:05:06', 1, NULL)"),
	} {
		p.same(ways[1], s)
	}
	for _, column := range []string{"i", "r", "tx", "b", "d", "bo", "n", "i||''", "count(*)", "d||''"} {
		for name, target := range map[string]func() any{
			"any": func() any { return new(any) }, "string": func() any { return new(string) }, "[]byte": func() any { return new([]byte) }, "RawBytes": func() any { return new(sql.RawBytes) },
			"int": func() any { return new(int) }, "int8": func() any { return new(int8) }, "float64": func() any { return new(float64) }, "bool": func() any { return new(bool) },
			"Time": func() any { return new(time.Time) }, "*string": func() any { return new(*string) }, "NullString": func() any { return new(sql.NullString) },
			"NullInt64": func() any { return new(sql.NullInt64) }, "NullTime": func() any { return new(sql.NullTime) }, "NullBool": func() any { return new(sql.NullBool) },
			"NullFloat64": func() any { return new(sql.NullFloat64) }, "Null[time]": func() any { return new(sql.Null[time.Time]) },
		} {
			for _, query := range []string{"SELECT %s FROM t", "UPDATE t SET id=1 RETURNING %s"} {
				if strings.HasPrefix(query, "UPDATE") && column == "count(*)" {
					continue
				}
				p.same(way{"scan " + name, func(ctx context.Context, c *sql.Conn, s step) string {
					rows, err := c.QueryContext(ctx, s.text)
					if err != nil {
						return seeError(err)
					}
					defer rows.Close()
					v := target()
					rows.Next()
					err = rows.Scan(v)
					switch v := v.(type) {
					case **string:
						if *v != nil {
							return fmt.Sprintf("*%q %v", **v, err)
						}
					case *sql.RawBytes:
						return fmt.Sprintf("%q %v", *v, err)
					}
					return fmt.Sprintf("%+v %v", dereference(v), err)
				}}, text(fmt.Sprintf(query, column)))
			}
		}
	}
}

func dereference(v any) any {
	switch v := v.(type) {
	case *any:
		return seeValue(*v)
	case *string:
		return *v
	case *[]byte:
		return fmt.Sprintf("%#v", *v)
	case *int:
		return *v
	case *int8:
		return *v
	case *float64:
		return *v
	case *bool:
		return *v
	case *time.Time:
		return seeValue(*v)
	case *sql.NullString:
		return *v
	case *sql.NullInt64:
		return *v
	case *sql.NullTime:
		return *v
	case *sql.NullBool:
		return *v
	case *sql.NullFloat64:
		return *v
	case *sql.Null[time.Time]:
		return *v
	}
	return nil
}
