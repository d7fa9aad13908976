"""The closed lexicon of the story grammar: each word of a story state, in both languages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of character. skills: what it can do if something is out of reach."""

    en: str
    zh: str
    skills: tuple[str, ...] = ()
    measure: str = "只"
    pronouns_en: tuple[str, ...] = ("he", "she")
    pronoun_zh: str = "它"


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing that a story is about. repair: the row of `REPAIRS` that mends it."""

    en: str
    zh: str
    measure: str
    repair: str = ""
    colours: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Word:
    """One meaning in both languages."""

    en: str
    zh: str


KINDS: tuple[Kind, ...] = (
    Kind("fox", "狐狸"),
    Kind("deer", "鹿"),
    Kind("wolf", "狼"),
    Kind("pig", "猪"),
    Kind("sheep", "羊"),
    Kind("tiger", "老虎"),
    Kind("lion", "狮子"),
    Kind("hen", "母鸡"),
    Kind("zebra", "斑马", measure="匹"),
    Kind("girl", "女孩", measure="个", pronouns_en=("she",), pronoun_zh="她"),
    Kind("boy", "男孩", measure="个", pronouns_en=("he",), pronoun_zh="他"),
    Kind("owl", "猫头鹰", ("fly", "see")),
    Kind("sparrow", "麻雀", ("fly",)),
    Kind("crow", "乌鸦", ("fly",)),
    Kind("dove", "鸽子", ("fly",)),
    Kind("bat", "蝙蝠", ("fly", "see")),
    Kind("squirrel", "松鼠", ("climb",)),
    Kind("monkey", "猴子", ("climb",)),
    Kind("cat", "猫", ("climb", "see")),
    Kind("koala", "考拉", ("climb",)),
    Kind("frog", "青蛙", ("swim",)),
    Kind("duck", "鸭子", ("swim",)),
    Kind("otter", "水獭", ("swim",)),
    Kind("turtle", "乌龟", ("swim", "tough")),
    Kind("penguin", "企鹅", ("swim",)),
    Kind("mole", "鼹鼠", ("dig",)),
    Kind("rabbit", "兔子", ("dig",)),
    Kind("dog", "狗", ("dig",)),
    Kind("mouse", "老鼠", ("squeeze",)),
    Kind("lizard", "蜥蜴", ("squeeze",)),
    Kind("hedgehog", "刺猬", ("tough",)),
    Kind("bear", "熊", ("push",)),
    Kind("horse", "马", ("push",), "匹"),
    Kind("buffalo", "水牛", ("push",), "头"),
)

THINGS: tuple[Thing, ...] = (
    Thing("lantern", "灯笼", "盏", "glue"),
    Thing("kite", "风筝", "只", "glue"),
    Thing("drum", "鼓", "面", "glue"),
    Thing("key", "钥匙", "把"),
    Thing("ball", "皮球", "个"),
    Thing("hat", "帽子", "顶", "thread"),
    Thing("scarf", "围巾", "条", "thread"),
    Thing("bell", "铃铛", "个"),
    Thing("book", "图画书", "本", "glue"),
    Thing("umbrella", "雨伞", "把", "thread"),
    Thing("flute", "笛子", "支", "glue"),
    Thing("basket", "篮子", "个", "straw"),
    Thing("blanket", "毯子", "条", "thread"),
    Thing("mirror", "镜子", "面"),
    Thing("cup", "杯子", "个", "glue"),
    Thing("teapot", "茶壶", "个", "glue"),
    Thing("button", "纽扣", "颗"),
    Thing("ribbon", "丝带", "条", "thread"),
    Thing("whistle", "哨子", "个"),
    Thing("compass", "指南针", "个"),
    Thing("coin", "硬币", "枚", "", ("gold", "silver")),
    Thing("ring", "戒指", "枚", "", ("gold", "silver", "green", "red", "blue")),
    Thing("apple", "苹果", "个", "", ("red", "green", "yellow", "gold")),
    Thing("shell", "贝壳", "枚"),
    Thing("feather", "羽毛", "根"),
    Thing("box", "盒子", "个", "glue"),
    Thing("clock", "闹钟", "个", "glue"),
    Thing("spoon", "勺子", "把"),
    Thing("candle", "蜡烛", "支"),
    Thing("doll", "布娃娃", "个", "thread"),
    Thing("glove", "手套", "只", "thread"),
    Thing("chair", "椅子", "把", "glue"),
    Thing("cart", "小推车", "辆", "glue"),
    Thing("boat", "玩具船", "艘", "glue"),
)

COLOURS: dict[str, Word] = {
    "red": Word("red", "红色的"),
    "blue": Word("blue", "蓝色的"),
    "green": Word("green", "绿色的"),
    "yellow": Word("yellow", "黄色的"),
    "white": Word("white", "白色的"),
    "purple": Word("purple", "紫色的"),
    "pink": Word("pink", "粉色的"),
    "gold": Word("golden", "金色的"),
    "silver": Word("silver", "银色的"),
}
PLAIN_COLOURS = tuple(COLOURS)

# The English text follows "there lived a fox"; the Chinese one follows 在.
PLACES: tuple[Word, ...] = (
    Word("in a quiet forest", "一片安静的森林里"),
    Word("in a small village", "一个小村子里"),
    Word("in a green valley", "一个绿色的山谷里"),
    Word("on a little island", "一座小岛上"),
    Word("in a sunny garden", "一座阳光明媚的花园里"),
    Word("on an old farm", "一个古老的农场里"),
    Word("on a round hill", "一座圆圆的小山上"),
    Word("by the blue sea", "蓝蓝的大海边"),
    Word("near a clear lake", "一个清清的湖边"),
    Word("on a high mountain", "一座高高的山上"),
    Word("in a busy town", "一个热闹的小镇上"),
    Word("in an old castle", "一座古老的城堡里"),
    Word("in a wide meadow", "一片宽宽的草地上"),
    Word("in a warm jungle", "一片温暖的丛林里"),
    Word("in an orchard", "一个果园里"),
    Word("beside a windmill", "一座风车旁边"),
    Word("near a lighthouse", "一座灯塔旁边"),
    Word("at the edge of a desert", "一片沙漠边上"),
)

TRAITS: tuple[Word, ...] = (
    Word("brave", "勇敢"),
    Word("kind", "善良"),
    Word("curious", "好奇"),
    Word("cheerful", "开朗"),
    Word("gentle", "温柔"),
    Word("clever", "聪明"),
    Word("patient", "有耐心"),
    Word("polite", "有礼貌"),
    Word("shy", "害羞"),
    Word("playful", "活泼"),
)

RECIPIENTS: tuple[Word, ...] = (
    Word("mother", "妈妈"),
    Word("father", "爸爸"),
    Word("grandmother", "奶奶"),
    Word("grandfather", "爷爷"),
    Word("little sister", "妹妹"),
    Word("little brother", "弟弟"),
    Word("teacher", "老师"),
)

REPAIRS: dict[str, Word] = {
    "glue": Word("a pot of glue", "一罐胶水"),
    "thread": Word("a needle and some thread", "一根针和一些线"),
    "straw": Word("a bundle of dry straw", "一捆干稻草"),
}

# Obstacle -> the skills that overcome it, one of which the friend has and the hero lacks.
OBSTACLES: dict[str, tuple[str, ...]] = {
    "tree": ("fly", "climb"),
    "pond": ("swim",),
    "hole": ("dig", "squeeze"),
    "rock": ("push",),
    "cave": ("see",),
    "thorns": ("tough",),
}

NAMES_EN: dict[str, tuple[str, ...]] = {
    "he": (
        *("Pip", "Toby", "Oscar", "Finn", "Max", "Leo", "Sam", "Hugo", "Ben", "Otto", "Felix"),
        *("Milo", "Theo", "Rufus", "Jasper", "Basil", "Gus", "Ned", "Teddy", "Benny", "Jack"),
        *("Henry", "Oliver", "Arlo", "Bruno", "Casper", "Dexter", "Ezra", "Frank", "George"),
        *("Harry", "Ivan", "Jonas", "Kit"),
    ),
    "she": (
        *("Mila", "Luna", "Ruby", "Daisy", "Nora", "Ivy", "Lily", "Rosa", "Clara", "Poppy"),
        *("Hazel", "Bella", "Anna", "Tilly", "Maya", "Kiki", "Coco", "Pearl", "Fern", "Lulu"),
        *("Alice", "Betty", "Cleo", "Dora", "Ella", "Flora", "Greta", "Holly", "Iris", "Jenny"),
        *("Kate", "Lucy", "Molly", "Nina"),
    ),
}

NAMES_ZH: tuple[str, ...] = (
    *("豆豆", "乐乐", "圆圆", "点点", "毛毛", "朵朵"),
    *("多多", "嘟嘟", "米米", "糖糖", "果果", "闹闹"),
    *("跳跳", "欢欢", "丁丁", "当当", "球球", "亮亮"),
    *("笑笑", "贝贝", "皮皮", "奇奇", "妙妙", "团团"),
    *("阿明", "阿花", "阿宝", "小白", "小黑", "小雨"),
    *("小雪", "小满", "小诺", "小安", "小星", "小夏"),
    *("咪咪", "可可", "安安", "晶晶", "美美", "壮壮", "墩墩", "苗苗"),
    *("兰兰", "阳阳", "宁宁", "飞飞", "涛涛", "洋洋", "琪琪", "莉莉"),
    *("甜甜", "蹦蹦", "萌萌", "噜噜", "小宝", "小鱼", "小米", "小福"),
    *("小乐", "小云", "阿福", "阿亮", "阿乐", "阿美", "阿旺", "叮叮"),
)
