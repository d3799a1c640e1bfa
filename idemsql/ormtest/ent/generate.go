// Package ent is generated from its folder schema, but for this file.
package ent

//go:generate go run entgo.io/ent/cmd/ent@v0.14.5 generate ./schema
