package main

import "gorm.io/gorm"

// An Item is what the shop sells.
type Item struct {
	Name  string `gorm:"primaryKey"`
	Stock int64
}

// An Order is what a customer has bought.
type Order struct {
	ID       int64  `gorm:"primaryKey" json:"id"`
	Customer string `json:"customer"`
	Item     string `json:"item"`
	Quantity int64  `json:"quantity"`
}

// place takes the order's quantity from the stock and stores the order. Both are
// in the transaction of db: whoever owns that decides whether they stay.
//
// That there is not enough is an answer, and no error: the shop has decided.
func place(db *gorm.DB, order *Order) (soldOut bool, err error) {
	taken := db.Model(&Item{}).
		Where("name = ? and stock >= ?", order.Item, order.Quantity).
		Update("stock", gorm.Expr("stock - ?", order.Quantity))
	if taken.Error != nil || taken.RowsAffected == 0 {
		return true, taken.Error
	}
	return false, db.Create(order).Error
}
