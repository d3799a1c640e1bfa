// Package schema has the table of the tests as ent knows it.
package schema

import (
	"entgo.io/ent"
	"entgo.io/ent/schema/field"
)

// Charge is a row of the table charges.
type Charge struct{ ent.Schema }

// Fields are its columns.
func (Charge) Fields() []ent.Field {
	return []ent.Field{field.Int64("id"), field.String("account"), field.Int64("cents")}
}
