"""Texts as people type them, in the one form that the grammar knows: simplified Chinese, lower case, half width."""

from __future__ import annotations

import re
import unicodedata

_TRADITIONAL = (
    "貓猫 馬马 駿骏 鳥鸟 魚鱼 車车 轎轿 樹树 兩两 雙双 個个 隻只 條条 輛辆 棟栋 紅红 黃黄 綠绿 藍蓝 顏颜 覺觉 "
    "飛飞 躍跃 著着 灘滩 間间 邊边 側侧 裡里 裏里 請请 畫画 張张 給给 這这 沒没 無无 與与 還还 們们 幾几 許许 "
    "圖图 麼么 倆俩 鵝鹅 騎骑 牠它 寵宠 對对 後后 從从 過过 來来 為为 時时 會会 說说 話话 國国 東东 門门 開开 "
    "關关 頭头 長长 熱热 電电 動动 雲云 風风 點点 單单 種种 樣样 體体 聲声 學学 習习 讓让 應应 該该 幫帮 煩烦 "
    "謝谢 麗丽 藝艺 術术 氣气 機机 遊游 灣湾 島岛 橋桥 樓楼 燈灯 陽阳 靜静 純纯 銀银 銅铜 鐵铁 龍龙 龜龟 豬猪 "
    "雞鸡 鴨鸭 獅狮 蝦虾 蟲虫 廣广 場场 園园 葉叶 麥麦 麵面 飯饭 兒儿 嗎吗 籃篮 鹹咸 濕湿 亂乱 別别 淺浅 閒闲 "
    "衝冲 乾干 傘伞 書书 讀读 寫写 聽听 見见 視视 觀观 閉闭 臺台 廳厅 牆墙 擺摆 掛挂 臥卧 併并 並并 總总 數数 "
    "萬万 億亿 屬属 尋寻 艙舱 帶带 繞绕 圍围 圓圆"
)
"""Traditional characters, each with the simplified one: of the words that are understood, and of common ones."""

_SIMPLIFIED = {ord(pair[0]): pair[1] for pair in _TRADITIONAL.split()}
_QUOTES = {ord(sign): "'" for sign in "’‘ʼ´`"}
_INVISIBLE = re.compile(r"[\u200b-\u200f\u2060\ufeff\u00ad\ufe0e\ufe0f]")


def normalise(text: str) -> str:
    """The text in compatibility form (NFKC), lower case, simplified characters and plain apostrophes."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_SIMPLIFIED | _QUOTES)
    return " ".join(_INVISIBLE.sub("", folded).split())
