-- Order logistics: what is sold, where it lies, and which parts of a sale have left which warehouse.

create table users (
    id    int primary key generated always as identity,
    name  text not null,
    email text not null unique
);

create table products (
    id          int primary key generated always as identity,
    sku         text not null unique,
    name        text not null,
    price_cents int  not null check (price_cents > 0)
);

create table warehouses (
    id   int primary key generated always as identity,
    name text not null unique
);

create table inventory (
    product_id   int not null references products,
    warehouse_id int not null references warehouses,
    quantity     int not null check (quantity >= 0),
    unique (product_id, warehouse_id)
);

create table sales (
    id       int primary key generated always as identity,
    user_id  int not null references users,
    placed   timestamptz not null,
    quantity int not null check (quantity > 0)
);

create table fulfillments (
    id           int primary key generated always as identity,
    sale_id      int  not null references sales,
    warehouse_id int  not null references warehouses,
    status       text not null default 'packing',
    created      timestamptz not null default now()
);

create table fulfillment_items (
    fulfillment_id int not null references fulfillments,
    product_id     int not null references products,
    quantity       int not null check (quantity > 0),
    primary key (fulfillment_id, product_id)
);

insert into users (name, email)
select name, lower(name) || '@example.com'
from unnest(array['Ada', 'Barbara', 'Edgar', 'Frances', 'Grace', 'Jim', 'Margaret', 'Michael']) as name;

insert into products (sku, name, price_cents)
values ('CRATE-S', 'Small crate', 900),
       ('CRATE-L', 'Large crate', 1900),
       ('PALLET', 'Pallet', 2500),
       ('DRUM', 'Steel drum', 4900),
       ('STRAP', 'Lashing strap', 700),
       ('WRAP', 'Stretch wrap', 1200),
       ('LABEL', 'Label roll', 400),
       ('SCANNER', 'Hand scanner', 15900);

insert into warehouses (name)
values ('Antwerp'), ('Gdansk'), ('Genoa'), ('Rotterdam');

insert into inventory (product_id, warehouse_id, quantity)
select products.id, warehouses.id, 1000000
from products cross join warehouses;

insert into sales (user_id, placed, quantity)
select 1 + n % 8, timestamptz '2025-01-01 08:00Z' + n * interval '7 minutes', 1 + n % 5
from generate_series(1, 200) as n;
