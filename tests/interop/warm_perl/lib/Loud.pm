package Loud;
use Filter::Simple;
FILTER { s/quiet/LOUD/g };
1;
