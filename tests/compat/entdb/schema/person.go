// Package schema is what entdb is generated from.
package schema

import (
	"time"

	"entgo.io/ent"
	"entgo.io/ent/schema/edge"
	"entgo.io/ent/schema/field"
	"entgo.io/ent/schema/index"
)

// Person has fields of all kinds, and edges to others of its kind: one type
// keeps the generated code small.
type Person struct{ ent.Schema }

func (Person) Fields() []ent.Field {
	return []ent.Field{
		field.String("email").Unique(),
		field.Bool("active").Default(true),
		field.Float("score").Default(0),
		field.Enum("role").Values("admin", "guest").Default("guest"),
		field.String("nick").Optional().Nillable(),
		field.Bytes("photo").Optional(),
		field.JSON("tags", map[string]any{}).Optional(),
		field.Time("born"),
		field.Time("died").Optional().Nillable(),
		field.Time("changed").Default(time.Now).UpdateDefault(time.Now),
	}
}

func (Person) Edges() []ent.Edge {
	return []ent.Edge{
		edge.To("children", Person.Type).From("parent").Unique(),
		edge.To("friends", Person.Type),
	}
}

func (Person) Indexes() []ent.Index {
	return []ent.Index{index.Fields("nick").Edges("parent").Unique()}
}
