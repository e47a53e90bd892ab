package WithData;
my $first = <DATA>;
sub lines { return ("first $first", map { "rest $_" } <DATA>) }
1;
__DATA__
module one
module two
module three
