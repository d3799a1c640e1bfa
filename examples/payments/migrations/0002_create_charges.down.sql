drop table charges;
