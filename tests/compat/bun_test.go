package compat

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"
)

type country struct {
	ID     int64   `bun:",pk,autoincrement"`
	Name   string  `bun:",unique,notnull"`
	Cities []*city `bun:"rel:has-many,join:id=country_id"`
}

type city struct {
	ID        int64     `bun:",pk,autoincrement"`
	Name      string    `bun:",unique,notnull"`
	Capital   bool      `bun:",notnull"`
	Area      float64   `bun:",notnull"`
	Mayor     *string   `bun:""`
	Arms      []byte    `bun:""`
	Tags      []string  `bun:"type:json"`
	Facts     facts     `bun:"type:json"`
	Founded   time.Time `bun:",notnull"`
	Left      *time.Time
	Changed   time.Time `bun:",nullzero,notnull,default:current_timestamp"`
	CountryID *int64
	Country   *country `bun:"rel:belongs-to,join:country_id=id"`
	Rivers    []river  `bun:"m2m:city_rivers,join:City=River"`
}

type facts struct {
	Height int             `json:"height"`
	Extra  json.RawMessage `json:"extra"`
}

type river struct {
	ID   int64 `bun:",pk,autoincrement"`
	Name string
}

type cityRiver struct {
	CityID  int64  `bun:",pk"`
	City    *city  `bun:"rel:belongs-to,join:city_id=id"`
	RiverID int64  `bun:",pk"`
	River   *river `bun:"rel:belongs-to,join:river_id=id"`
}

func TestBun(t *testing.T) {
	each(t, func(t *testing.T, d *database) {
		open := func(db *sql.DB) *bun.DB {
			b := bun.NewDB(db, sqlitedialect.New())
			b.RegisterModel((*cityRiver)(nil))
			return b
		}
		b := &bunSuite{d: d, db: open(d.home), away: open(d.away[0])}
		t.Run("tables", b.tables)
		t.Run("values", b.values)
		t.Run("write", b.write)
		t.Run("relations", b.relations)
		t.Run("queries", b.queries)
		t.Run("transactions", b.transactions)
		t.Run("errors", b.errors)
		t.Run("cancellation", b.cancellation)
	})
}

type bunSuite struct {
	d        *database
	db, away *bun.DB
}

func (b *bunSuite) tables(t *testing.T) {
	ctx := patient(t)
	for range 2 {
		for _, q := range []*bun.CreateTableQuery{
			b.db.NewCreateTable().Model((*country)(nil)),
			b.db.NewCreateTable().Model((*city)(nil)).ForeignKey("(country_id) REFERENCES countries(id) ON DELETE CASCADE"),
			b.db.NewCreateTable().Model((*river)(nil)),
			b.db.NewCreateTable().Model((*cityRiver)(nil)).WithForeignKeys(),
		} {
			value[sql.Result](t)(q.IfNotExists().Exec(ctx))
		}
	}
	value[sql.Result](t)(b.db.NewCreateIndex().Model((*river)(nil)).Index("rivers_name").Unique().Column("name").Exec(ctx))
	value[sql.Result](t)(b.db.NewAddColumn().Model((*river)(nil)).ColumnExpr("length INTEGER").Exec(ctx))
	value[sql.Result](t)(b.db.NewDropColumn().Model((*river)(nil)).Column("length").Exec(ctx))
}

func (b *bunSuite) values(t *testing.T) {
	full := city{Name: "O'Hara\\?", Capital: true, Area: 1.25, Mayor: new("é\"\n"), Arms: []byte{0, 39, 255}, Tags: []string{"a", "b'"},
		Facts: facts{7, json.RawMessage(`{"x":null}`)}, Founded: moment.Truncate(time.Microsecond), Left: new(moment.AddDate(900, 0, 0).Truncate(time.Microsecond))}
	empty := city{Name: "Empty", Founded: full.Founded, Facts: facts{Extra: json.RawMessage("null")}}
	for _, c := range []*city{&full, &empty} {
		value[sql.Result](t)(b.db.NewInsert().Model(c).Exec(patient(t)))
		if c.ID == 0 || c.Changed.IsZero() {
			t.Errorf("no defaults were returned: %+v", c)
		}
		var got city
		must(t, b.away.NewSelect().Model(&got).Where("id = ?", c.ID).Scan(latest(t)))
		got.Founded, got.Left, got.Changed, c.Changed = got.Founded.UTC(), utc(got.Left), got.Changed.UTC(), c.Changed.UTC()
		same(t, got, *c)
	}
	same(t, empty.ID, full.ID+1)
}

func (b *bunSuite) write(t *testing.T) {
	ctx := patient(t)
	rivers := make([]river, 1000)
	for i := range rivers {
		rivers[i].Name = "river " + time.Duration(i).String()
	}
	value[sql.Result](t)(b.db.NewInsert().Model(&rivers).Exec(ctx))
	same(t, rivers[999].ID, rivers[0].ID+999)
	b.d.count(t, "rivers", 1000)

	change := rivers[:3]
	for i := range change {
		change[i].Name += "!"
	}
	r := value[sql.Result](t)(b.db.NewUpdate().Model(&change).Column("name").Bulk().Exec(ctx))
	same(t, value[int64](t)(r.RowsAffected()), 3)
	b.d.count(t, "rivers WHERE name LIKE '%!'", 3)

	again := river{Name: rivers[0].Name}
	value[sql.Result](t)(b.db.NewInsert().Model(&again).On("CONFLICT (name) DO UPDATE").Set("name = EXCLUDED.name || '?'").Returning("*").Exec(ctx))
	same(t, again, river{ID: rivers[0].ID, Name: rivers[0].Name + "?"})
	r = value[sql.Result](t)(b.db.NewInsert().Model(&river{Name: again.Name}).Ignore().Exec(ctx))
	same(t, value[int64](t)(r.RowsAffected()), 0)

	var gone []int64
	value[sql.Result](t)(b.db.NewDelete().Model((*river)(nil)).Where("id IN (?)", bun.List([]int64{rivers[0].ID, rivers[1].ID})).Returning("id").Exec(ctx, &gone))
	same(t, len(gone), 2)
	value[sql.Result](t)(b.db.NewTruncateTable().Model((*river)(nil)).Exec(ctx))
	b.d.count(t, "rivers", 0)
}

func (b *bunSuite) relations(t *testing.T) {
	ctx := patient(t)
	land := country{Name: "Land"}
	value[sql.Result](t)(b.db.NewInsert().Model(&land).Exec(ctx))
	cities := []city{{Name: "A", CountryID: &land.ID, Founded: moment}, {Name: "B", CountryID: &land.ID, Founded: moment}}
	value[sql.Result](t)(b.db.NewInsert().Model(&cities).Exec(ctx))
	rivers := []river{{Name: "r"}, {Name: "s"}}
	value[sql.Result](t)(b.db.NewInsert().Model(&rivers).Exec(ctx))
	value[sql.Result](t)(b.db.NewInsert().Model(&[]cityRiver{
		{CityID: cities[0].ID, RiverID: rivers[0].ID}, {CityID: cities[0].ID, RiverID: rivers[1].ID},
	}).Exec(ctx))

	var got country
	must(t, b.away.NewSelect().Model(&got).Relation("Cities", func(q *bun.SelectQuery) *bun.SelectQuery { return q.Order("name") }).
		Where("country.id = ?", land.ID).Scan(latest(t)))
	same(t, len(got.Cities), 2)
	same(t, got.Cities[1].Name, "B")
	var a city
	must(t, b.away.NewSelect().Model(&a).Relation("Country").Relation("Rivers").Where("city.name = 'A'").Scan(latest(t)))
	same(t, a.Country.Name, "Land")
	same(t, len(a.Rivers), 2)

	value[sql.Result](t)(b.db.NewDelete().Model((*cityRiver)(nil)).Where("city_id = ?", a.ID).Exec(ctx))
	value[sql.Result](t)(b.db.NewDelete().Model(&land).WherePK().Exec(ctx))
	b.d.count(t, "cities", 2)
}

func (b *bunSuite) queries(t *testing.T) {
	ctx := latest(t)
	names := b.db.NewSelect().Model((*city)(nil)).Column("name").Where("capital")
	var got []string
	must(t, b.away.NewSelect().With("capitals", names).Table("capitals").Scan(ctx, &got))
	same(t, got, []string{"O'Hara\\?"})

	type pair struct {
		ID   int64
		Name string
	}
	values := b.db.NewValues(&[]pair{{1, "one"}, {2, "two"}})
	var pairs []pair
	must(t, b.away.NewSelect().With("p", values).Table("p").Where("id > 1").Scan(ctx, &pairs))
	same(t, pairs, []pair{{2, "two"}})
	value[sql.Result](t)(b.db.NewUpdate().With("p", values).Model((*city)(nil)).TableExpr("p").
		Set("area = p.id").Where("city.name = 'Empty' AND p.name = 'two'").Exec(patient(t)))

	n, err := b.away.NewSelect().Model((*city)(nil)).Where("area = 2").Count(ctx)
	must(t, err)
	same(t, n, 1)
	there, err := b.away.NewSelect().Model((*city)(nil)).Where("name = 'none'").Exists(ctx)
	must(t, err)
	same(t, there, false)
	var cities []city
	n, err = b.away.NewSelect().Model(&cities).Order("id").Limit(1).ScanAndCount(ctx)
	must(t, err)
	same(t, n, 2)
	same(t, len(cities), 1)
	var row map[string]any
	must(t, b.away.NewRaw("SELECT ? AS a, ? AS b, ? AS c", 1, "x", nil).Scan(ctx, &row))
	same(t, row, map[string]any{"a": int64(1), "b": "x", "c": nil})

	rows, err := b.db.NewSelect().Model((*city)(nil)).Order("id").Rows(ctx)
	must(t, err)
	defer rows.Close()
	for n = 0; rows.Next(); n++ {
		var c city
		must(t, b.db.ScanRow(ctx, rows, &c))
	}
	must(t, rows.Err())
	same(t, n, 2)
}

func (b *bunSuite) transactions(t *testing.T) {
	ctx := patient(t)
	add := func(db bun.IDB, name string) error {
		_, err := db.NewInsert().Model(&country{Name: name}).Exec(ctx)
		return err
	}
	must(t, b.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		must(t, add(tx, "tx outer"))
		fails(t, tx.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error { // a savepoint
			must(t, add(tx, "tx lost"))
			return errAbandon
		}), errAbandon)
		must(t, tx.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error { return add(tx, "tx inner") }))
		code(t, add(tx, "tx outer"), 2067, "UNIQUE constraint failed: countries.name")
		return add(tx, "tx last")
	}))
	b.d.count(t, "countries WHERE name IN ('tx outer', 'tx inner', 'tx last')", 3)
	b.d.count(t, "countries", 3)

	fails(t, b.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		must(t, add(tx, "gone"))
		n, err := tx.NewSelect().Model((*country)(nil)).Count(ctx)
		must(t, err)
		same(t, n, 4)
		value[sql.Result](t)(tx.NewDelete().Model((*city)(nil)).Where("1 = 1").Exec(ctx))
		return errAbandon
	}), errAbandon)
	b.d.count(t, "countries", 3)
	b.d.count(t, "cities", 2)

	tx, err := b.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	must(t, err)
	n, err := tx.NewSelect().Model((*country)(nil)).Count(ctx)
	must(t, err)
	same(t, n, 3)
	must(t, tx.Rollback())
}

func (b *bunSuite) errors(t *testing.T) {
	ctx := patient(t)
	_, err := b.db.NewInsert().Model(&[]country{{Name: "fresh"}, {Name: "tx outer"}}).Exec(ctx)
	code(t, err, 2067, "UNIQUE constraint failed: countries.name")
	b.d.count(t, "countries WHERE name = 'fresh'", 0)
	_, err = b.db.NewInsert().Model(&city{Name: "lost", CountryID: new(int64(99))}).Exec(ctx)
	code(t, err, 787, "FOREIGN KEY constraint failed")
	fails(t, b.away.NewSelect().Model(new(city)).Where("id = 0").Scan(latest(t)), sql.ErrNoRows)
}

func (b *bunSuite) cancellation(t *testing.T) {
	_, err := b.db.NewInsert().Model(&country{Name: "cancelled"}).Exec(cancelled())
	fails(t, err, context.Canceled)
	ctx, cancel := context.WithCancel(patient(t))
	err = b.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		_, err := tx.NewInsert().Model(&country{Name: "cancelled"}).Exec(ctx)
		cancel()
		return err
	})
	if !errors.Is(err, sql.ErrTxDone) { // database/sql has rolled back before bun commits
		fails(t, err, context.Canceled)
	}
	b.d.count(t, "countries WHERE name = 'cancelled'", 0)
}
