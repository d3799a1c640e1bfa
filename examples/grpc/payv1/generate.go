// Package payv1 is the schema of the example.
package payv1

// The versions of the two generators are in buf.gen.yaml.
//
//go:generate go run github.com/bufbuild/buf/cmd/buf@v1.75.0 generate
